#ifndef FACET_TESTS_SIMULATION_PLAN_AUDITOR_H_
#define FACET_TESTS_SIMULATION_PLAN_AUDITOR_H_

#include <cstdint>
#include <map>

#include "absl/status/status.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/step_plan.h"

namespace facet::sim {

// Reads every plan of an epoch before the executor sees it, as a suspicious rank would, and says
// what is wrong instead of stopping: the order of steps, slots and positions, blocks that exist
// where they are needed, and nobody writing to a block that somebody else reads.
class PlanAuditor {
 public:
  explicit PlanAuditor(const EngineOptions& options) : options_(options) {}

  absl::Status Take(const StepPlan& plan);

 private:
  struct Slot {
    int64_t next_position = 0;
    int64_t unsure = 0;    // of the positions before it, the last that may not have counted
    bool sampled = false;  // by its latest segment
  };

  absl::Status TakeSlots(const StepPlan& plan);
  absl::Status TakeSegment(const Segment& segment, int* tokens);
  absl::Status CheckTable(const Segment& segment, int pool) const;
  absl::Status CheckWriters(const StepPlan& plan, int pool) const;
  // The first position whose key the segment reads in `pool`.
  int64_t FirstRead(const Segment& segment, int pool) const;

  const EngineOptions options_;
  uint64_t last_step_ = 0;
  std::map<SlotId, Slot> slots_;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_PLAN_AUDITOR_H_
