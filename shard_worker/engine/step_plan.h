#ifndef FACET_SHARD_WORKER_ENGINE_STEP_PLAN_H_
#define FACET_SHARD_WORKER_ENGINE_STEP_PLAN_H_

// What one step computes, decided by the engine on the leader, broadcast to every rank and run by
// an executor; and what comes back.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace facet {

// KV blocks come in two pools with different lifetimes: 0 keeps every key of a sequence, 1 only
// the sliding window's.
inline constexpr int kBlockPools = 2;

// Stands in a Segment for the token that the preceding step sampled in its slot: a step is planned
// before the one before it has come back. Every rank keeps the token.
inline constexpr TokenId kSampledToken = -1;

// How a token is chosen; see SamplingParams in protos/facet/v1/types.proto for the semantics.
struct SamplingParams {
  float temperature = 1;
  int top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float repetition_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::vector<std::pair<TokenId, float>> logit_bias;  // ids ascending, unique
  friend bool operator==(const SamplingParams&, const SamplingParams&) = default;
};

// Per-sequence state that every rank keeps, in a slot, from the first step to the end.
struct SequenceStart {
  SlotId slot;
  uint64_t seed = 0;  // of the sequence
  SamplingParams sampling;
  int logprobs = -1;           // alternatives wanted with each token; -1: no log-probabilities
  bool logits_digest = false;  // hash every position's logits (test only)
  // Tokens that penalties count from the start; empty where no penalty is set.
  std::vector<TokenId> history;
  int prompt_length = 0;  // of `history`: the rest of it is output
};

// Consecutive tokens of one sequence.
struct Segment {
  SlotId slot;
  int64_t first_position = 0;
  std::vector<TokenId> tokens;  // or {kSampledToken}
  // So many of the last tokens are guesses. They count as far as each is what is chosen after the
  // tokens before it. REQUIRES: 0, or `sample` is set and kSampledToken is not among the tokens.
  int proposals = 0;
  // Block ids by position / block size; -1 where a window has left them behind.
  std::array<std::vector<int32_t>, kBlockPools> blocks;
  bool sample = false;        // choose the token after the last one that counts
  bool score_prompt = false;  // log-probability of each token that follows in the prompt
  // With score_prompt: the prompt token after the segment's last, if the prompt goes on.
  std::optional<TokenId> next_prompt_token;
};

struct StepPlan {
  uint64_t step = 0;
  std::vector<SlotId> ends;  // slots to forget, before `starts` may use them again
  std::vector<SequenceStart> starts;
  std::vector<Segment> segments;
};

struct ScoredToken {
  TokenId id = 0;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // best first
  friend bool operator==(const ScoredToken&, const ScoredToken&) = default;
};

struct SegmentResult {
  // With `sample`: of the segment's proposals those that were right, in order, and the token that
  // is chosen after them. The keys of all but the last are stored.
  std::vector<ScoredToken> sampled;
  // With score_prompt: the tokens at first_position + 1, +2, ... and next_prompt_token.
  std::vector<ScoredToken> prompt;
  bool finite = true;  // false: the logits were not numbers; nothing was sampled
  // For a SequenceStart with logits_digest: the SHA-256 of the raw float32 logits of every position
  // of the sequence so far, in order; proposals that were wrong are no part of it.
  std::string logits_sha256;
};

struct StepResult {
  uint64_t step = 0;
  std::vector<SegmentResult> segments;  // as in the plan
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_STEP_PLAN_H_
