#include "serving/short_slices.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace facet {
namespace {

constexpr uint64_t kShortNs = 100'000;  // the least that Linux grants

// The kernel's struct sched_attr, as it was first: its header and <sched.h> exclude each other.
struct Attributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;
  uint64_t deadline;
  uint64_t period;
};
static_assert(sizeof(Attributes) == 48);

// 0: the system's. Only makes waiting shorter, so that a refusal is no error.
void SetSlice(uint64_t ns) {
  Attributes attributes = {};
  if (syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) != 0) return;
  if (attributes.policy != SCHED_OTHER) return;  // somebody has other plans for it
  attributes.runtime = ns;
  syscall(SYS_sched_setattr, 0, &attributes, 0);
}

}  // namespace

ShortSlices::ShortSlices() { SetSlice(kShortNs); }

ShortSlices::~ShortSlices() { SetSlice(0); }

}  // namespace facet
