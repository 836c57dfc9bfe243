#include "kernels/collectives/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <limits>

namespace facet {

// Not FUTEX_PRIVATE_FLAG: the word may be shared between processes.

void FutexWait(const std::atomic<uint32_t>& word, uint32_t expected,
               std::chrono::nanoseconds timeout) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(timeout);
  const timespec relative = {.tv_sec = static_cast<time_t>(seconds.count()),
                             .tv_nsec = static_cast<long>((timeout - seconds).count())};
  // A changed word, a signal and a timeout all end here alike: the caller looks again.
  syscall(SYS_futex, &word, FUTEX_WAIT, expected, &relative, nullptr, 0);
}

void FutexWakeAll(const std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, std::numeric_limits<int>::max(), nullptr, nullptr, 0);
}

}  // namespace facet
