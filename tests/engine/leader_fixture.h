#ifndef FACET_TESTS_ENGINE_LEADER_FIXTURE_H_
#define FACET_TESTS_ENGINE_LEADER_FIXTURE_H_

// A leader without threads, sockets or a model: its core, a fake executor, and a clock that a test
// moves.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "shard_worker/engine/leader_core.h"
#include "shard_worker/runtime/fake_executor.h"

namespace facet {

inline constexpr TimeUs kStepUs = 1000;
inline constexpr SessionId kA{1}, kB{2};

inline LeaderCoreOptions SmallOptions() {
  LeaderCoreOptions options;
  options.engine.block_tokens = 16;
  options.engine.blocks = {64, 64};
  options.engine.window = 32;
  options.engine.context_tokens = 512;
  options.engine.vocabulary_size = 500;
  options.engine.step_tokens_max = 32;
  options.engine.prefill_chunk_max = 32;
  options.engine.sequences_max = 4;
  options.engine.waiting_max = 4;
  options.canary.enabled = false;
  options.epoch = 77;
  return options;
}

inline EngineRequest Request(int prompt, int max_tokens) {
  EngineRequest request;
  for (int i = 0; i < prompt; ++i) request.tokens.push_back((i * 7 + prompt) % 500);
  request.prompt_length = prompt;
  request.max_tokens = max_tokens;
  request.seed = 5;
  return request;
}

// What a session was told of one of its sequences.
struct Answer {
  std::vector<TokenId> tokens;
  std::optional<EngineFinish> finish;
  absl::Status refusal;
};

// A leader: core and fake executor, with a clock of its own.
class Leader {
 public:
  explicit Leader(const LeaderCoreOptions& options, std::optional<CanaryAnswer> canary = {},
                  std::optional<TokenId> poison = {})
      : options_(options), core(options, std::move(canary), 0), executor_(options.engine, poison) {}

  // Plans what may be planned and completes one step, if one is outstanding.
  bool Step() {
    Plan();
    if (plans_.empty()) return false;
    Complete();
    Listen();
    return true;
  }
  void Complete() {
    now += step_us;
    core.Complete(*executor_.Run(plans_.front()), now);
    plans_.pop_front();
  }
  void Plan() {
    while (core.outstanding() < options_.engine.steps_max) {
      std::optional<StepPlan> plan = core.Plan(now);
      if (!plan) break;
      segments += static_cast<int>(plan->segments.size());
      plans_.push_back(*std::move(plan));
    }
    Listen();
  }
  void Listen() {
    EXPECT_TRUE(core.Check().ok()) << core.Check();
    for (SessionNews& news : core.TakeNews(now)) {
      ++messages[news.session];
      for (SequenceNews& sequence : news.sequences) {
        Answer& answer = answers[news.session][sequence.number];
        EXPECT_FALSE(answer.finish) << "news after the end";
        if (!sequence.refusal.ok()) {
          answer.refusal = sequence.refusal;
          continue;
        }
        EXPECT_EQ(sequence.delta.offset, static_cast<int>(answer.tokens.size()));
        for (const ScoredToken& token : sequence.delta.tokens) answer.tokens.push_back(token.id);
        answer.finish = sequence.delta.finish;
      }
      news.sequences.clear();
      last[news.session] = std::move(news);
    }
  }
  // Lives until `end`, as its owner would: a step as soon as there is one, else until the wake-up.
  void LiveUntil(TimeUs end) {
    while (now < end) {
      if (Step()) continue;
      const TimeUs wake = core.NextWake();
      ASSERT_GT(wake, now) << "the core wants to be woken and does nothing";
      now = std::min(end, wake);
      Listen();
    }
  }
  void RunDry() {
    while (core.sequences() > 0) ASSERT_TRUE(Step() || core.sequences() == 0);
  }

  const LeaderCoreOptions options_;
  LeaderCore core;
  TimeUs now = 0;
  TimeUs step_us = kStepUs;  // what a step takes
  int segments = 0;          // planned
  std::map<SessionId, std::map<uint64_t, Answer>> answers;
  std::map<SessionId, SessionNews> last;
  std::map<SessionId, int> messages;

 private:
  FakeExecutor executor_;
  std::deque<StepPlan> plans_;
};

// What the executor answers to `request` alone.
inline std::vector<TokenId> Expected(const EngineRequest& request, const EngineOptions& options) {
  std::vector<TokenId> tokens = request.tokens;
  for (int i = 0; i < request.max_tokens; ++i) {
    const uint64_t logits = FakeExecutor::LogitsAfter(tokens, options);
    const auto position = static_cast<int64_t>(tokens.size());
    tokens.push_back(FakeExecutor::Choose(logits, options, request.seed, position, 0).id);
  }
  return {tokens.begin() + request.prompt_length, tokens.end()};
}

}  // namespace facet

#endif  // FACET_TESTS_ENGINE_LEADER_FIXTURE_H_
