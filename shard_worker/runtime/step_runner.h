#ifndef FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_
#define FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_

// What a rank does in a step: its part of the model over the plan's tokens, then, with the other
// ranks, the choice of the next ones.

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"
#include "kernels/device.h"
#include "shard_worker/engine/step_plan.h"
#include "shard_worker/model/forward.h"
#include "shard_worker/runtime/sampler.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet {

// Keeps what every rank must remember of the running sequences. One thread calls it. What it needs
// within a step it keeps from those before: on processors, among ranks that share a host's memory,
// a step that needs no more than they did allocates nothing, takes no lock, and calls the system
// only to park where it waits long and to wake who has parked. Starts of sequences allocate, and so
// do digests, which tests ask for.
class StepRunner {
 public:
  struct Options {
    int sequences_max = 0;           // slots
    int step_tokens_max = 0;         // rows of a step
    VocabularySlices slices;         // this rank's
    int64_t vocabulary = 0;          // all ranks' ids
    int64_t context_tokens = 0;      // of a sequence, at most
    std::function<void()> progress;  // called at least once per tile of logits
  };
  // Borrows `forward` and `device`, its device.
  StepRunner(Options options, Forward* forward, Device* device);

  // Forgets all sequences, and the steps that are under way.
  void Reset();
  // Every rank runs the same plans in the same order. A plan without segments only ends and begins
  // sequences. After an error nothing of the epoch can be computed any more.
  // *result may be an earlier step's, whose memory is used again.
  absl::Status Run(const StepPlan& plan, Communicator* communicator, StepResult* result);

  // Run() in two halves, with up to kUnderWayMax steps between them. Whether a plan can be run so,
  // once fewer are under way; all ranks run it the same way.
  bool MayOverlap(const StepPlan& plan) const;
  // REQUIRES: MayOverlap(plan), fewer than kUnderWayMax steps under way, and of the device a place
  // for a token by slot.
  absl::Status Begin(const StepPlan& plan, Communicator* communicator);
  // Run()'s *result for the oldest step under way. Every rank gets it; REQUIRES: there is one.
  absl::Status End(StepResult* result);
  static constexpr int kUnderWayMax = 2;
  int under_way() const { return count_; }

 private:
  // A row of the step whose logits somebody needs.
  struct LogitRow {
    int32_t row;
    size_t segment;
    SampleRow sample;
  };

  struct UnderWay {
    uint64_t step = 0;
    size_t segments = 0;
    std::vector<size_t> rows;  // the segment of each row whose token was asked for
  };

  // The sequence of a segment as the plan begins it, or as it runs.
  const SequenceStart& StartOf(const StepPlan& plan, SlotId slot) const;
  // Makes `plan` the step that runs, whose final hidden states are there then.
  absl::Status Compute(const StepPlan& plan, Communicator* communicator);
  // Names a tile's rows to the sampler.
  void Name(std::span<const LogitRow> rows);
  absl::Status Ask(const StepPlan& plan, std::span<const LogitRow> rows, UnderWay* under_way);
  void LayOut(const StepPlan& plan);
  // What kSampledToken stands for: a token, or the device's place that has it.
  TokenId SampledIn(SlotId slot) const;
  void AddLogitRows(const Segment& segment, size_t index, int first_row);
  absl::Status ComputeLogits(const StepPlan& plan, std::span<const LogitRow> rows,
                             std::span<SegmentResult> results);
  absl::Status Search();
  // Makes *result an empty one of the step.
  void Clear(uint64_t step, size_t segments, StepResult* result);
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
  std::vector<int32_t> keep_;
  std::vector<BestToken> best_;
  // Of a row whose logits are hashed:
  std::vector<float> hashed_;                        // this rank's
  std::vector<std::vector<std::byte>> hashed_rows_;  // all ranks', in host memory
  // The steps that are under way, from the first_th on, in a ring.
  std::array<UnderWay, kUnderWayMax> under_way_;
  int first_ = 0;
  int count_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_STEP_RUNNER_H_
