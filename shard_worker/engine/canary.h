#ifndef FACET_SHARD_WORKER_ENGINE_CANARY_H_
#define FACET_SHARD_WORKER_ENGINE_CANARY_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "shard_worker/engine/engine.h"

namespace facet {

struct CanaryOptions {
  bool enabled = true;                      // false: only tests that count steps
  std::vector<TokenId> prompt = {1, 2, 3};  // taken modulo the vocabulary
  int output_tokens = 2;
  // False where bits depend on what else a step computes: an answer need only come to its end, and
  // be numbers.
  bool exact = true;
  TimeUs quiet = 1'000'000;  // without progress of real work before one runs
  // A canary that took d runs again after d x this at the earliest: what an idle group may cost.
  int rest_factor = 100;
};

// Tokens and the bits of their log-probabilities.
struct CanaryAnswer {
  std::vector<TokenId> tokens;
  std::vector<uint32_t> logprob_bits;
  friend bool operator==(const CanaryAnswer&, const CanaryAnswer&) = default;
};

struct CanaryStats {
  int64_t runs = 0;        // answered
  int64_t failures = 0;    // of them, wrong
  TimeUs duration_us = 0;  // of the last
};

// Decides when a group must prove that it still computes, and whether it has. A canary is a tiny
// fixed prompt, greedy, whose answer must be the same bits for as long as the process lives
// (exact). One runs at the start of an epoch, and then after a time without real work that went
// forward. Sans-IO; part of LeaderCore.
class Canary {
 public:
  // `expected`: the answer of the process's first canary; absent: this epoch's first makes it.
  Canary(const CanaryOptions& options, int vocabulary_size, std::optional<CanaryAnswer> expected,
         TimeUs now);

  // When the next one is to start; nothing while one runs.
  std::optional<TimeUs> due() const;
  // REQUIRES: none runs.
  EngineRequest Start(SequenceId id, TimeUs now);
  // It could not be submitted; another one is due later.
  void Abandon(TimeUs now);
  // Somebody's tokens have been computed.
  void RealProgress(TimeUs now);
  // News of the running one.
  void Take(const EngineDelta& delta, TimeUs now);

  bool running() const { return id_.has_value(); }
  std::optional<SequenceId> id() const { return id_; }
  // One has been right, and none wrong.
  bool proven() const { return !options_.enabled || (stats_.runs > 0 && stats_.failures == 0); }
  // An error once an answer was wrong: the group must not be trusted any more.
  const absl::Status& verdict() const { return verdict_; }
  const std::optional<CanaryAnswer>& expected() const { return expected_; }
  const CanaryStats& stats() const { return stats_; }
  // Tokens of canaries that were started, which no statistics of real work should count.
  int64_t prompt_tokens() const { return prompt_tokens_; }
  int64_t output_tokens() const { return output_tokens_; }

 private:
  void Judge(const EngineDelta& last, TimeUs now);

  const CanaryOptions options_;
  const int vocabulary_size_;
  std::optional<CanaryAnswer> expected_;
  std::optional<SequenceId> id_;
  CanaryAnswer answer_;  // of the running one, so far
  TimeUs started_ = 0;
  TimeUs due_;
  absl::Status verdict_;
  CanaryStats stats_;
  int64_t prompt_tokens_ = 0;
  int64_t output_tokens_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_CANARY_H_
