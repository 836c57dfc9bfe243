#ifndef FACET_SHARD_WORKER_RUNTIME_STEP_TIMES_H_
#define FACET_SHARD_WORKER_RUNTIME_STEP_TIMES_H_

// What a rank's steps took: summed up by the thread that runs them, looked at by others.

#include <array>
#include <atomic>
#include <cstdint>

#include "kernels/device.h"
#include "shard_worker/runtime/step_profile.h"

namespace facet {

struct StepTimes {
  int64_t steps = 0;
  double compute_s = 0;
  double collective_s = 0;  // moving and adding
  double wait_s = 0;        // for slower ranks, and for the next plan
  HeadReads head;           // of the output layer
  StepProfile profile;      // of the steps that were profiled

  void Subtract(const StepTimes& other);
};

// Sums that one thread stores and any thread loads; neither ever waits. Who loads may see one field
// as of a later step than another: fields only grow, and the next look brings the rest.
class PublishedTimes {
 public:
  void Store(const StepTimes& times);
  StepTimes Load() const;

 private:
  using Words = std::array<uint64_t, sizeof(StepTimes) / sizeof(uint64_t)>;  // a field in each
  std::array<std::atomic<uint64_t>, std::tuple_size_v<Words>> words_ = {};
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_STEP_TIMES_H_
