#include "shard_worker/runtime/fake_executor.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/prng.h"

namespace facet {
namespace {

constexpr int kFull = 0;
constexpr int kWindow = 1;

// Six times of eight the tokens before decide which of the habitual ones follows, once it is any
// of these, and once any token at all.
constexpr size_t kHabitTokens = 2;
constexpr uint64_t kHabits = 3;
constexpr uint64_t kHabitMask = 0xffffffff;

uint64_t HashTokens(std::span<const TokenId> tokens) {
  uint64_t hash = tokens.size();
  for (TokenId token : tokens) hash = Mix64(hash, static_cast<uint64_t>(token));
  return hash;
}

TokenId PickToken(uint64_t hash, const EngineOptions& options) {
  return static_cast<TokenId>(hash % static_cast<uint64_t>(options.vocabulary_size));
}

std::string DigestBytes(uint64_t digest) {
  std::string bytes(sizeof(digest), '\0');
  std::memcpy(bytes.data(), &digest, sizeof(digest));
  return bytes;
}

// Of at most two histories: what layers of the full pool and of the window pool can see. The upper
// half depends on all of it, the lower half on the last two tokens.
uint64_t CombineLogits(const EngineOptions& options, std::span<const TokenId> all,
                       std::span<const TokenId> window) {
  uint64_t logits = 0;
  if (options.blocks[kFull] > 0) logits = Mix64(logits, HashTokens(all));
  if (options.blocks[kWindow] > 0) logits = Mix64(logits, HashTokens(window));
  const std::span<const TokenId> seen = options.blocks[kFull] > 0 ? all : window;
  const uint64_t habit = HashTokens(seen.last(std::min<size_t>(seen.size(), kHabitTokens)));
  return (logits & ~kHabitMask) | (habit & kHabitMask);
}

}  // namespace

FakeExecutor::FakeExecutor(const EngineOptions& options, std::optional<TokenId> poison)
    : options_(options), poison_(poison) {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    kv_[pool].assign(static_cast<size_t>(options.blocks[pool]) * options.block_tokens, -1);
  }
}

uint64_t FakeExecutor::LogitsAfter(std::span<const TokenId> history, const EngineOptions& options) {
  const auto window = std::min<size_t>(history.size(), static_cast<size_t>(options.window));
  return CombineLogits(options, history, history.last(window));
}

ScoredToken FakeExecutor::Choose(uint64_t logits, const EngineOptions& options, uint64_t seed,
                                 int64_t position, int logprobs) {
  const uint64_t draw = Mix64(logits, PositionKey(seed, position));
  const uint64_t any = Mix64(draw);
  uint64_t choice = Mix64(logits & kHabitMask) % kHabits;
  if (draw % 8 == 0) choice = any;
  if (draw % 8 == 1) choice = any % kHabits;
  return Score(logits, options, PickToken(Mix64(choice), options), logprobs);
}

ScoredToken FakeExecutor::Score(uint64_t logits, const EngineOptions& options, TokenId next,
                                int logprobs) {
  const auto score = [&](TokenId id) {
    return -static_cast<float>(Mix64(logits, static_cast<uint64_t>(id)) % 1000) / 64;
  };
  ScoredToken token;
  token.id = next;
  token.logprob = score(next);
  for (int i = 0; i < logprobs; ++i) {
    const TokenId id = PickToken(Mix64(logits + 1, static_cast<uint64_t>(i)), options);
    token.top.emplace_back(id, score(id));
  }
  return token;
}

std::string FakeExecutor::DigestOf(std::span<const TokenId> tokens, int64_t positions,
                                   const EngineOptions& options) {
  uint64_t digest = 0;
  for (int64_t position = 0; position < positions; ++position) {
    digest = Mix64(digest, LogitsAfter(tokens.first(position + 1), options));
  }
  return DigestBytes(digest);
}

absl::StatusOr<StepResult> FakeExecutor::Run(const StepPlan& plan) {
  FACET_CHECK(plan.step > last_step_, "step {} after step {}", plan.step, last_step_);
  last_step_ = plan.step;
  ApplyEndsAndStarts(plan);
  // All keys of the step are stored before any is read, as in a layer of a model.
  std::vector<Segment> segments;
  for (const Segment& segment : plan.segments) segments.push_back(Resolve(segment));
  for (const Segment& segment : segments) Store(segment);
  StepResult result;
  result.step = plan.step;
  for (const Segment& segment : segments) result.segments.push_back(Compute(segment));
  return result;
}

void FakeExecutor::ApplyEndsAndStarts(const StepPlan& plan) {
  for (SlotId slot : plan.ends) {
    FACET_CHECK(slots_.erase(slot) == 1, "slot {} ends and was not started", slot.value);
  }
  for (const SequenceStart& start : plan.starts) {
    FACET_CHECK(start.slot.value >= 0 && start.slot.value < options_.sequences_max);
    Slot slot;
    slot.start = start;
    FACET_CHECK(slots_.emplace(start.slot, slot).second, "slot {} is taken", start.slot.value);
  }
}

Segment FakeExecutor::Resolve(Segment segment) const {
  const auto slot = slots_.find(segment.slot);
  FACET_CHECK(slot != slots_.end(), "slot {} was not started", segment.slot.value);
  for (TokenId& token : segment.tokens) {
    if (token != kSampledToken) continue;
    FACET_CHECK(segment.tokens.size() == 1 && slot->second.last_sampled.has_value(),
                "slot {}: no token was sampled before", segment.slot.value);
    FACET_CHECK(!slot->second.start.logits_digest, "slot {}: a digest and overlapped steps",
                segment.slot.value);
    token = *slot->second.last_sampled;
  }
  return segment;
}

size_t FakeExecutor::Index(const Segment& segment, int pool, int64_t position) const {
  const int64_t entry = position / options_.block_tokens;
  const std::vector<int32_t>& blocks = segment.blocks[pool];
  FACET_CHECK(entry < static_cast<int64_t>(blocks.size()), "no block for position {}", position);
  const int32_t block = blocks[entry];
  FACET_CHECK(block >= 0 && block < options_.blocks[pool], "block {} at position {}", block,
              position);
  return static_cast<size_t>(block) * options_.block_tokens + position % options_.block_tokens;
}

void FakeExecutor::Store(const Segment& segment) {
  Slot& slot = slots_.at(segment.slot);
  FACET_CHECK(!segment.tokens.empty());
  // It goes on where it was, or over whole blocks that somebody else has computed.
  const bool over_blocks = segment.first_position > slot.next_position &&
                           segment.first_position % options_.block_tokens == 0 &&
                           slot.next_position % options_.block_tokens == 0;
  FACET_CHECK(segment.first_position == slot.next_position || over_blocks, "position {} after {}",
              segment.first_position, slot.next_position);
  slot.next_position = segment.first_position;
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (options_.blocks[pool] == 0) continue;
    int64_t position = segment.first_position;
    for (TokenId token : segment.tokens) kv_[pool][Index(segment, pool, position++)] = token;
  }
  slot.next_position += static_cast<int64_t>(segment.tokens.size());
}

std::vector<TokenId> FakeExecutor::Read(const Segment& segment, int pool, int64_t first,
                                        int64_t end) const {
  std::vector<TokenId> tokens;
  if (options_.blocks[pool] == 0) return tokens;
  for (int64_t position = first; position < end; ++position) {
    tokens.push_back(kv_[pool][Index(segment, pool, position)]);
  }
  return tokens;
}

uint64_t FakeExecutor::ReadLogits(const Segment& segment, int64_t position) const {
  const int64_t end = position + 1;
  return CombineLogits(options_, Read(segment, kFull, 0, end),
                       Read(segment, kWindow, std::max<int64_t>(0, end - options_.window), end));
}

ScoredToken FakeExecutor::Sample(const Segment& segment, int64_t row, uint64_t logits) const {
  const SequenceStart& start = slots_.at(segment.slot).start;
  return Choose(logits, options_, start.seed, segment.first_position + row + 1,
                std::max(0, start.logprobs));
}

SegmentResult FakeExecutor::Compute(const Segment& segment) {
  Slot& slot = slots_.at(segment.slot);
  const auto known = std::ssize(segment.tokens) - segment.proposals;
  FACET_CHECK(segment.proposals >= 0 && known > 0 && (segment.sample || segment.proposals == 0),
              "slot {}: {} proposals", segment.slot.value, segment.proposals);
  SegmentResult result;
  for (int64_t row = 0; row < std::ssize(segment.tokens); ++row) {
    const TokenId token = segment.tokens[row];
    const bool proposed = row >= known;
    if (proposed && token != result.sampled.back().id) break;
    if (token == poison_ && proposed) break;  // its turn comes when it is a token
    if (token == poison_) result.finite = false;
    const bool sample = segment.sample && row + 1 >= known;
    if (!sample && !segment.score_prompt) continue;
    const uint64_t logits = ReadLogits(segment, segment.first_position + row);
    slot.digest = Mix64(slot.digest, logits);
    std::optional<TokenId> next = segment.next_prompt_token;
    if (row + 1 < known) next = segment.tokens[row + 1];
    if (segment.score_prompt && !proposed && next) {
      result.prompt.push_back(Score(logits, options_, *next, std::max(0, slot.start.logprobs)));
    }
    if (sample) result.sampled.push_back(Sample(segment, row, logits));
  }
  // Keys of proposals that were wrong lie beyond this, and are written over.
  if (segment.sample) {
    slot.next_position += std::ssize(result.sampled) - 1 - segment.proposals;
    Remember(result.sampled, &slot);
  }
  if (!result.finite) result.sampled.clear();
  if (slot.start.logits_digest) result.logits_sha256 = DigestBytes(slot.digest);
  return result;
}

void FakeExecutor::Remember(const std::vector<ScoredToken>& sampled, Slot* slot) {
  slot->last_sampled = sampled.back().id;
  std::vector<TokenId>& history = slot->start.history;
  if (history.empty()) return;
  for (const ScoredToken& token : sampled) history.push_back(token.id);
  FACET_CHECK(std::ssize(history) == slot->next_position + 1, "penalties know {} tokens of {}",
              history.size(), slot->next_position + 1);
}

}  // namespace facet
