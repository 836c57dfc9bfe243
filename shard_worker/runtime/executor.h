#ifndef FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
#define FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_

#include <string>

#include "absl/status/statusor.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// Computes step plans, on the leader. Real (GroupExecutor) or fake. One thread calls it.
class Executor {
 public:
  virtual ~Executor() = default;
  // An error means that the group is broken: nothing more can be computed in this epoch.
  // A plan without segments is a keep-alive: followers see that the leader lives.
  virtual absl::StatusOr<StepResult> Run(const StepPlan& plan) = 0;
  // SHA-256 of the raw float32 logits of every position of the sequence in `slot`, in order, for
  // a SequenceStart with logits_digest. Valid until the slot is started again.
  virtual std::string LogitsDigest(SlotId slot) const = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_EXECUTOR_H_
