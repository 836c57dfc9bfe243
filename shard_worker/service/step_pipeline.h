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
  bool last = false;   // no plan waits
};

// Runs step plans in their order on a thread of its own, "step", so that the engine thread can
// speak to routers meanwhile. Who pushes bounds how many are outstanding.
class StepPipeline {
 public:
  // Borrows `executor`. `on_done` is called on the step thread, which goes on with what is pushed
  // there without a pause; it must not wait.
  StepPipeline(Executor* executor, std::function<void(StepDone)> on_done);
  ~StepPipeline();

  // After a step that failed, nothing is run any more. Any thread.
  void Push(StepPlan plan);
  // Waits for the step that runs and its `on_done`; plans that have not begun, and later ones, are
  // dropped. Repeating is harmless. REQUIRES: the calling thread is not the step thread.
  void Stop();

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
