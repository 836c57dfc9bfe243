#ifndef FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
#define FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/status.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// Computes step plans, on the leader. Real (GroupExecutor) or fake. One thread calls it.
class Executor {
 public:
  virtual ~Executor() = default;
  // An error means that the group is broken: nothing more can be computed in this epoch.
  // A plan without segments is a keep-alive: followers see that the leader lives.
  // Plans run in the order of their steps.
  // REQUIRES: no step is under way.
  virtual absl::StatusOr<StepResult> Run(const StepPlan& plan) = 0;

  // The same in two halves, where a step needs no result of the one before it: then it can be under
  // way before that result is read. Few executors can do so, and these with some plans only.
  // Whether the next plan may begin now, beside what is under way.
  virtual bool MayBegin(const StepPlan&) const { return false; }
  // Puts a step under way; an error as of Run(). REQUIRES: MayBegin(plan).
  virtual absl::Status Begin(const StepPlan&) { return Internal("this executor runs whole steps"); }
  // The result of the oldest step that is under way. REQUIRES: there is one.
  virtual absl::StatusOr<StepResult> End() { return Internal("no step is under way"); }
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
