#ifndef FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_
#define FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_

// The bytes in which a leader broadcasts a step plan to its followers, who are the same binary on
// the same kind of machine: native byte order, no versioning.

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

std::vector<std::byte> EncodePlan(const StepPlan& plan);
// Internal if the bytes are not an encoded plan.
absl::StatusOr<StepPlan> DecodePlan(std::span<const std::byte> bytes);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_
