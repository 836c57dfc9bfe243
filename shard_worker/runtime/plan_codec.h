#ifndef FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_
#define FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_

// The bytes in which a leader broadcasts a step plan to its followers, on the same kind of machine:
// native byte order. The version is compared once, when a group forms.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// Bumped when these bytes, or the collectives that a rank makes of them, change: a rank of another
// version is refused before anything is computed (GroupService).
inline constexpr uint64_t kStepProtocolVersion = 2;

// How all ranks run a plan: as a whole, or so that others may be under way beside it.
enum class StepForm : uint8_t { kWhole = 0, kOverlapping = 1 };

// Both overwrite what was there and use its memory.
void EncodePlan(const StepPlan& plan, StepForm form, std::vector<std::byte>* bytes);
// Internal if the bytes are not an encoded plan; what *plan and *form hold then is unspecified.
absl::Status DecodePlan(std::span<const std::byte> bytes, StepPlan* plan, StepForm* form);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_PLAN_CODEC_H_
