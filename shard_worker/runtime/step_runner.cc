#include "shard_worker/runtime/step_runner.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

// Whether a row, of a segment whose rows before it gave `result`, is one of the sequence: if it
// has a proposal, all up to this one were right. One with logits that are no numbers is left for
// the next step, where it is no proposal: the tokens before it are good.
bool Counts(const SampleRow& row, const SampleOutcome& outcome, const SegmentResult& result) {
  if (row.assumed.empty()) return true;
  return outcome.finite && result.sampled.size() == row.assumed.size() &&
         result.sampled.back().id == row.assumed.back();
}

}  // namespace

StepRunner::StepRunner(Options options, Forward* forward, Device* device)
    : options_(std::move(options)),
      forward_(forward),
      device_(device),
      sampler_(device, options_.slices, options_.vocabulary),
      slots_(options_.sequences_max, options_.context_tokens) {}

void StepRunner::Reset() {
  slots_ = SequenceSlots(options_.sequences_max, options_.context_tokens);
  forward_->DropBest();
  count_ = 0;
}

absl::Status StepRunner::Compute(const StepPlan& plan, Communicator* communicator) {
  communicator_ = communicator;
  communicator->SetStep(plan.step);
  slots_.Apply(plan);
  if (plan.segments.empty()) return absl::OkStatus();
  LayOut(plan);
  const StepLayout layout{static_cast<int>(tokens_.size()), runs_};
  FACET_CHECK(layout.rows <= options_.step_tokens_max, "{} rows", layout.rows);
  return forward_->Run(layout, tokens_, wanted_, communicator);
}

absl::Status StepRunner::Run(const StepPlan& plan, Communicator* communicator, StepResult* result) {
  FACET_CHECK(count_ == 0, "step {} while {} are under way", plan.step, count_);
  FACET_RETURN_IF_ERROR(Compute(plan, communicator));
  Clear(plan.step, plan.segments.size(), result);
  if (plan.segments.empty()) return absl::OkStatus();
  const std::span<const LogitRow> rows = logit_rows_;
  for (size_t first = 0; first < rows.size(); first += kLogitRowsMax) {
    const size_t count = std::min<size_t>(kLogitRowsMax, rows.size() - first);
    FACET_RETURN_IF_ERROR(ComputeLogits(plan, rows.subspan(first, count), result->segments));
    options_.progress();
  }
  Remember(plan, result->segments);
  device_->EndStep();
  return absl::OkStatus();
}

void StepRunner::Clear(uint64_t step, size_t segments, StepResult* result) {
  for (SegmentResult& segment : result->segments) {
    for (ScoredToken& token : segment.sampled) sampler_.TakeBack(&token);
    for (ScoredToken& token : segment.prompt) sampler_.TakeBack(&token);
    segment.sampled.clear();
    segment.prompt.clear();
    segment.finite = true;
    segment.logits_sha256.clear();
  }
  result->step = step;
  result->segments.resize(segments);
}

const SequenceStart& StepRunner::StartOf(const StepPlan& plan, SlotId slot) const {
  for (const SequenceStart& start : plan.starts) {
    if (start.slot == slot) return start;
  }
  return slots_[slot].start();
}

// Every row that is sampled must be one whose token the device can keep, and no row may be wanted
// for anything else. Then whatever follows is known before the step is read.
bool StepRunner::MayOverlap(const StepPlan& plan) const {
  if (plan.segments.empty()) return false;
  return std::all_of(plan.segments.begin(), plan.segments.end(), [&](const Segment& segment) {
    const SequenceStart& start = StartOf(plan, segment.slot);
    return segment.proposals == 0 && !segment.score_prompt && !start.logits_digest &&
           (!segment.sample || Sampler::BestIsChosen(start));
  });
}

absl::Status StepRunner::Begin(const StepPlan& plan, Communicator* communicator) {
  FACET_CHECK(count_ < kUnderWayMax, "step {} while {} are under way", plan.step, count_);
  FACET_RETURN_IF_ERROR(Compute(plan, communicator));
  UnderWay& step = under_way_[static_cast<size_t>((first_ + count_++) % kUnderWayMax)];
  step.step = plan.step;
  step.segments = plan.segments.size();
  step.rows.clear();
  const std::span<const LogitRow> rows = logit_rows_;
  for (size_t first = 0; first < rows.size(); first += kLogitRowsMax) {
    const size_t count = std::min<size_t>(kLogitRowsMax, rows.size() - first);
    FACET_RETURN_IF_ERROR(Ask(plan, rows.subspan(first, count), &step));
  }
  device_->EndStep();
  return absl::OkStatus();
}

absl::Status StepRunner::Ask(const StepPlan& plan, std::span<const LogitRow> rows,
                             UnderWay* under_way) {
  Name(rows);
  keep_.clear();
  for (const LogitRow& row : rows) {
    const SlotId slot = plan.segments[row.segment].slot;
    keep_.push_back(static_cast<int32_t>(slot.value));
    slots_[slot].Keep();
    under_way->rows.push_back(row.segment);
  }
  return forward_->Ask(step_rows_, sampler_.slices(), sampler_.Queries(samples_), keep_);
}

absl::Status StepRunner::End(StepResult* result) {
  FACET_CHECK(count_ > 0, "no step is under way");
  UnderWay& step = under_way_[static_cast<size_t>(first_)];
  first_ = (first_ + 1) % kUnderWayMax;
  --count_;
  Clear(step.step, step.segments, result);
  for (size_t i = 0; i < step.rows.size(); ++i) {
    const size_t in_tile = i % kLogitRowsMax;
    if (in_tile == 0) {
      best_.resize(std::min<size_t>(kLogitRowsMax, step.rows.size() - i));
      const absl::Status read = forward_->ReadBest(best_);
      if (!read.ok()) return Annotate(read, fmt::format("step {}", step.step));
      options_.progress();
    }
    SegmentResult& segment = result->segments[step.rows[i]];
    segment.finite = best_[in_tile].finite;
    if (segment.finite) segment.sampled.emplace_back().id = best_[in_tile].id;
  }
  return absl::OkStatus();
}

// The step's rows, segment by segment.
void StepRunner::LayOut(const StepPlan& plan) {
  tokens_.clear();
  runs_.clear();
  logit_rows_.clear();
  wanted_.clear();
  for (size_t i = 0; i < plan.segments.size(); ++i) {
    const Segment& segment = plan.segments[i];
    SequenceRun& run = runs_.emplace_back();
    run.first_row = static_cast<int>(tokens_.size());
    run.rows = static_cast<int>(segment.tokens.size());
    run.first_position = segment.first_position;
    for (int pool = 0; pool < kKvPools; ++pool) run.blocks[pool] = segment.blocks[pool];
    AddLogitRows(segment, i, run.first_row);
    for (const TokenId token : segment.tokens) {
      tokens_.push_back(token == kSampledToken ? SampledIn(segment.slot) : token);
    }
  }
}

TokenId StepRunner::SampledIn(SlotId slot) const {
  const SequenceState& state = slots_[slot];
  return state.kept() ? RowOfKept(static_cast<int32_t>(slot.value)) : state.last_sampled();
}

void StepRunner::AddLogitRows(const Segment& segment, size_t index, int first_row) {
  const SequenceState& state = slots_[segment.slot];
  const int count = static_cast<int>(segment.tokens.size());
  const int known = count - segment.proposals;
  for (int i = 0; i < count; ++i) {
    SampleRow sample;
    sample.state = &state;
    sample.position = segment.first_position + i;
    sample.sample = segment.sample && i >= known - 1;
    if (i >= known) sample.assumed = std::span(segment.tokens).subspan(known, i - known + 1);
    if (segment.score_prompt) {
      if (i + 1 < count) {
        sample.score = segment.tokens[i + 1];
      } else {
        sample.score = segment.next_prompt_token;
      }
    }
    if (sample.sample || sample.score || state.logits_digest()) {
      logit_rows_.push_back({first_row + i, index, sample});
      wanted_.push_back(first_row + i);
    }
  }
}

void StepRunner::Name(std::span<const LogitRow> rows) {
  step_rows_.clear();
  samples_.clear();
  for (const LogitRow& row : rows) {
    step_rows_.push_back(row.row);
    samples_.push_back(row.sample);
  }
}

absl::Status StepRunner::ComputeLogits(const StepPlan& plan, std::span<const LogitRow> rows,
                                       std::span<SegmentResult> results) {
  Name(rows);
  // Where no row needs its logits, the output layer is searched and they are never written.
  const bool whole = std::any_of(rows.begin(), rows.end(), [](const LogitRow& row) {
    return row.sample.state->logits_digest() || Sampler::NeedsLogits(row.sample);
  });
  const Floats logits = whole ? forward_->Logits(step_rows_) : Floats();
  FACET_RETURN_IF_ERROR(whole ? sampler_.Run(logits, samples_, communicator_, &outcomes_)
                              : Search());
  for (size_t i = 0; i < rows.size(); ++i) {
    SegmentResult& result = results[rows[i].segment];
    SampleOutcome& outcome = outcomes_[i];
    if (!Counts(samples_[i], outcome, result)) continue;
    SequenceState& state = slots_[plan.segments[rows[i].segment].slot];
    if (state.logits_digest()) FACET_RETURN_IF_ERROR(HashRow(logits, i, &state));
    result.finite = result.finite && outcome.finite;
    if (outcome.scored) result.prompt.push_back(*std::move(outcome.scored));
    if (outcome.sampled) result.sampled.push_back(*std::move(outcome.sampled));
  }
  return absl::OkStatus();
}

absl::Status StepRunner::Search() {
  return sampler_.Search(
      [this](std::span<const CandidateQuery> queries, std::span<CandidateReply> replies) {
        forward_->Search(step_rows_, sampler_.slices(), queries, replies);
      },
      samples_, communicator_, &outcomes_);
}

// Adds one row of logits, assembled from all ranks in vocabulary order, to a sequence's digest.
absl::Status StepRunner::HashRow(Floats logits, size_t index, SequenceState* state) {
  const int64_t mine = forward_->vocabulary_rows();
  hashed_.resize(static_cast<size_t>(mine));
  device_->CopyOut(Floats{logits.data + static_cast<int64_t>(index) * mine, mine}, hashed_);
  FACET_RETURN_IF_ERROR(
      communicator_->AllGatherBytes(std::as_bytes(std::span(hashed_)), &hashed_rows_));
  for (const std::vector<std::byte>& part : hashed_rows_)
    state->digest().Update(part.data(), part.size());
  return absl::OkStatus();
}

void StepRunner::Remember(const StepPlan& plan, std::span<SegmentResult> results) {
  for (size_t i = 0; i < results.size(); ++i) {
    SequenceState& state = slots_[plan.segments[i].slot];
    for (const ScoredToken& token : results[i].sampled) state.Append(token.id);
    if (state.logits_digest()) results[i].logits_sha256 = state.digest().Digest();
  }
}

}  // namespace facet
