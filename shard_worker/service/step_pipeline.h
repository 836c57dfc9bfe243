#ifndef FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_
#define FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "shard_worker/runtime/executor.h"

namespace facet {

// What a step came to.
struct StepDone {
  absl::StatusOr<StepResult> result;
  double seconds = 0;  // that it took
  int64_t rows = 0;    // tokens computed
};

// Runs step plans in their order on a thread of its own, "step", so that the engine thread can
// speak to routers during a long step and plan the next one meanwhile. Who pushes bounds how many
// are outstanding.
class StepPipeline {
 public:
  // Borrows `executor`. `on_done` is called on the step thread; it must not wait.
  StepPipeline(Executor* executor, std::function<void(StepDone)> on_done);
  // Waits for the step that runs; drops those that have not begun.
  ~StepPipeline();

  // After a step that failed, nothing is run any more.
  void Push(StepPlan plan);

 private:
  void Run();

  Executor* const executor_;
  const std::function<void(StepDone)> on_done_;
  absl::Mutex mutex_;
  std::deque<StepPlan> plans_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_
