#ifndef FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_
#define FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_

// What a rank does in a step: its part of the model over the plan's tokens, then, with the other
// ranks, the choice of the next ones.

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"
#include "kernels/device.h"
#include "shard_worker/engine/step_plan.h"
#include "shard_worker/model/forward.h"
#include "shard_worker/runtime/sampler.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet {

// Keeps what every rank must remember of the running sequences. One thread calls it; what it needs
// within a step it keeps from the step before, so that steps of a known size allocate only results.
class StepRunner {
 public:
  struct Options {
    int sequences_max = 0;           // slots
    int step_tokens_max = 0;         // rows of a step
    VocabularySlices slices;         // this rank's
    int64_t vocabulary = 0;          // all ranks' ids
    std::function<void()> progress;  // called at least once per tile of logits
  };
  // Borrows `forward` and `device`, its device.
  StepRunner(Options options, Forward* forward, Device* device);

  // Forgets all sequences.
  void Reset();
  // Every rank runs the same plans in the same order. A plan without segments only ends and begins
  // sequences. After an error nothing of the epoch can be computed any more.
  absl::StatusOr<StepResult> Run(const StepPlan& plan, Communicator* communicator);

 private:
  // A row of the step whose logits somebody needs.
  struct LogitRow {
    int32_t row;
    size_t segment;
    SampleRow sample;
  };

  void LayOut(const StepPlan& plan);
  void AddLogitRows(const Segment& segment, size_t index, int first_row);
  absl::Status ComputeLogits(const StepPlan& plan, std::span<const LogitRow> rows,
                             std::span<SegmentResult> results);
  absl::Status Search();
  absl::Status HashRow(Floats logits, size_t index, SequenceState* state);
  void Remember(const StepPlan& plan, std::span<SegmentResult> results);

  const Options options_;
  Forward* const forward_;
  Device* const device_;
  Communicator* communicator_ = nullptr;  // of the step that runs
  Sampler sampler_;
  SequenceSlots slots_;
  // Of the step that runs:
  std::vector<TokenId> tokens_;
  std::vector<SequenceRun> runs_;
  std::vector<LogitRow> logit_rows_;
  std::vector<int32_t> wanted_;  // their rows
  // Of the tile of logits that is looked at:
  std::vector<int32_t> step_rows_;
  std::vector<SampleRow> samples_;
  std::vector<SampleOutcome> outcomes_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_
