#ifndef FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_
#define FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "shard_worker/runtime/executor.h"

namespace facet {

// What a step came to.
struct StepDone {
  absl::StatusOr<StepResult> result;
  double seconds = 0;  // that it took, or, if it began before the one before it ended, since then
  int64_t rows = 0;    // tokens computed
  bool last = false;   // no plan waits; a step may be under way
};

// Runs step plans in their order on a thread of its own, "step", so that the engine thread can
// speak to routers meanwhile. Who pushes bounds how many are outstanding. Where the executor lets a
// plan begin beside the step that is under way, it is begun before that step's result is asked for.
class StepPipeline {
 public:
  // Borrows `executor`. `on_done` is called on the step thread, which goes on with what is pushed
  // there without a pause; it must not wait.
  StepPipeline(Executor* executor, std::function<void(StepDone)> on_done);
  ~StepPipeline();

  // After a step that failed, nothing is run any more. Any thread.
  void Push(StepPlan plan);
  // Waits for the step that runs and its `on_done`; plans that have not begun, steps under way that
  // nobody has asked for yet, and later plans are dropped. Repeating is harmless. REQUIRES: the
  // calling thread is not the step thread.
  void Stop();

 private:
  using Clock = std::chrono::steady_clock;
  struct Begun {
    absl::Status status;
    int64_t rows = 0;
  };

  void Run();
  // Waits until there is something to do. The plan to be begun or run next; nothing: the oldest
  // step under way is to be ended.
  std::optional<StepPlan> Next() ABSL_LOCKS_EXCLUDED(mutex_);
  bool stopped() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<StepResult> EndOldest();
  // Returns whether the next one can be computed.
  bool Tell(absl::StatusOr<StepResult> result, int64_t rows);

  Executor* const executor_;
  const std::function<void(StepDone)> on_done_;
  absl::Mutex mutex_;
  std::deque<StepPlan> plans_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  // The step thread's:
  std::deque<Begun> begun_;  // and not ended
  // When the oldest of them began, or the step before it ended, if that was later.
  Clock::time_point began_;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_STEP_PIPELINE_H_
