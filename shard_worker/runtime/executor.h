#ifndef FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
#define FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_

#include "absl/status/statusor.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// Computes step plans, on the leader. Real (GroupExecutor) or fake. One thread calls it.
class Executor {
 public:
  virtual ~Executor() = default;
  // An error means that the group is broken: nothing more can be computed in this epoch.
  // A plan without segments is a keep-alive: followers see that the leader lives.
  // Plans run in the order of their steps.
  virtual absl::StatusOr<StepResult> Run(const StepPlan& plan) = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
