#include "tests/simulation/plan_auditor.h"

#include <algorithm>

#include "base/status.h"

namespace facet::sim {
namespace {

constexpr int kWindow = 1;

}  // namespace

absl::Status PlanAuditor::Take(const StepPlan& plan) {
  if (plan.step <= last_step_) return Internal("step {} after step {}", plan.step, last_step_);
  last_step_ = plan.step;
  FACET_RETURN_IF_ERROR(TakeSlots(plan));
  int tokens = 0, proposals = 0;
  std::map<SlotId, int> segments;
  for (const Segment& segment : plan.segments) {
    if (++segments[segment.slot] > 1) {
      return Internal("step {}: two segments of slot {}", plan.step, segment.slot.value);
    }
    FACET_RETURN_IF_ERROR(TakeSegment(segment, &tokens));
    proposals += segment.proposals;
  }
  if (proposals > 0 && tokens > options_.speculation.step_rows_max) {
    return Internal("step {}: {} tokens with {} proposals, at most {} may be", plan.step, tokens,
                    proposals, options_.speculation.step_rows_max);
  }
  if (tokens > options_.step_tokens_max) {
    return Internal("step {}: {} tokens, at most {} may be", plan.step, tokens,
                    options_.step_tokens_max);
  }
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (options_.blocks[pool] == 0) continue;
    FACET_RETURN_IF_ERROR(CheckWriters(plan, pool));
  }
  return absl::OkStatus();
}

absl::Status PlanAuditor::TakeSlots(const StepPlan& plan) {
  for (const SlotId slot : plan.ends) {
    if (slots_.erase(slot) == 0) {
      return Internal("step {}: slot {} ends and was not started", plan.step, slot.value);
    }
  }
  for (const SequenceStart& start : plan.starts) {
    const bool in_range = start.slot.value >= 0 && start.slot.value < options_.sequences_max;
    if (!in_range) return Internal("step {}: slot {}", plan.step, start.slot.value);
    if (!slots_.emplace(start.slot, Slot()).second) {
      return Internal("step {}: slot {} is taken", plan.step, start.slot.value);
    }
  }
  return absl::OkStatus();
}

absl::Status PlanAuditor::TakeSegment(const Segment& segment, int* tokens) {
  const auto found = slots_.find(segment.slot);
  if (found == slots_.end()) return Internal("slot {} was not started", segment.slot.value);
  Slot& slot = found->second;
  const auto size = static_cast<int>(segment.tokens.size());
  const int known = size - segment.proposals;
  if (known <= 0 || known > options_.prefill_chunk_max) {
    return Internal("a segment of {} tokens, at most {} may be", known, options_.prefill_chunk_max);
  }
  const SpeculationOptions& speculation = options_.speculation;
  if (segment.proposals < 0 || segment.proposals > speculation.proposals_max ||
      (segment.proposals > 0 && !segment.sample)) {
    return Internal("slot {}: {} proposals, at most {} may be", segment.slot.value,
                    segment.proposals, segment.sample ? speculation.proposals_max : 0);
  }
  // It goes on where it was, or behind whole blocks that were found in the cache.
  const bool over_blocks = segment.first_position > slot.next_position &&
                           segment.first_position % options_.block_tokens == 0 &&
                           slot.next_position % options_.block_tokens == 0;
  const bool goes_on = segment.first_position <= slot.next_position &&
                       segment.first_position >= slot.next_position - slot.unsure;
  if (!goes_on && !over_blocks) {
    return Internal("slot {}: position {} after {}", segment.slot.value, segment.first_position,
                    slot.next_position);
  }
  for (int i = 0; i < size; ++i) {
    const TokenId token = segment.tokens[static_cast<size_t>(i)];
    const bool known = token >= 0 && token < options_.vocabulary_size;
    const bool sampled = token == kSampledToken && size == 1 && slot.sampled;
    if (!known && !sampled) return Internal("slot {}: token {}", segment.slot.value, token);
  }
  slot.next_position = segment.first_position + size;
  slot.unsure = segment.proposals;
  slot.sampled = segment.sample;
  *tokens += size;
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (options_.blocks[pool] > 0) FACET_RETURN_IF_ERROR(CheckTable(segment, pool));
  }
  return absl::OkStatus();
}

int64_t PlanAuditor::FirstRead(const Segment& segment, int pool) const {
  if (pool != kWindow) return 0;
  return std::max<int64_t>(0, segment.first_position - options_.window + 1);
}

absl::Status PlanAuditor::CheckTable(const Segment& segment, int pool) const {
  const int64_t end = segment.first_position + std::ssize(segment.tokens);
  for (int64_t i = FirstRead(segment, pool) / options_.block_tokens;
       i * options_.block_tokens < end; ++i) {
    const std::vector<int32_t>& blocks = segment.blocks[pool];
    const int32_t block = i < std::ssize(blocks) ? blocks[static_cast<size_t>(i)] : -1;
    if (block < 0 || block >= options_.blocks[pool]) {
      return Internal("slot {}: block {} of pool {} at position {}", segment.slot.value, block,
                      pool, i * options_.block_tokens);
    }
  }
  return absl::OkStatus();
}

absl::Status PlanAuditor::CheckWriters(const StepPlan& plan, int pool) const {
  const int size = options_.block_tokens;
  std::map<int32_t, SlotId> writers;
  const auto block_at = [&](const Segment& s, int64_t i) {
    return s.blocks[pool][static_cast<size_t>(i)];
  };
  for (const Segment& s : plan.segments) {
    const int64_t last = s.first_position + std::ssize(s.tokens) - 1;
    for (int64_t i = s.first_position / size; i <= last / size; ++i) {
      if (writers.emplace(block_at(s, i), s.slot).second) continue;
      return Internal("step {}: two write to block {} of pool {}", plan.step, block_at(s, i), pool);
    }
  }
  for (const Segment& s : plan.segments) {
    const int64_t last = s.first_position + std::ssize(s.tokens) - 1;
    for (int64_t i = FirstRead(s, pool) / size; i <= last / size; ++i) {
      const auto writer = writers.find(block_at(s, i));
      if (writer == writers.end() || writer->second == s.slot) continue;
      return Internal("step {}: slot {} writes to block {} of pool {}, which slot {} reads",
                      plan.step, writer->second.value, block_at(s, i), pool, s.slot.value);
    }
  }
  return absl::OkStatus();
}

}  // namespace facet::sim
