#ifndef FACET_TESTS_ENGINE_ENGINE_GROUP_H_
#define FACET_TESTS_ENGINE_ENGINE_GROUP_H_

// An engine and the fake executor it drives, one call at a time; and what a naive loop over plain
// tokens says that its sequences must print.

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <vector>

#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/fake_executor.h"

namespace facet::testing {

inline EngineOptions SmallOptions() {
  EngineOptions options;
  options.block_tokens = 4;
  options.blocks = {16, 16};
  options.window = 8;
  options.context_tokens = 48;
  options.vocabulary_size = 100;
  options.step_tokens_max = 16;
  options.sequences_max = 4;
  options.waiting_max = 4;
  options.prefill_chunk_max = 8;
  return options;
}

inline EngineRequest Request(uint64_t id, std::vector<TokenId> prompt, int max_tokens) {
  EngineRequest request;
  request.id = SequenceId{id};
  request.prompt_length = static_cast<int>(prompt.size());
  request.tokens = std::move(prompt);
  request.max_tokens = max_tokens;
  return request;
}

// Tokens that depend on `id`.
inline EngineRequest Request(uint64_t id, int prompt, int max_tokens) {
  std::vector<TokenId> tokens;
  for (int i = 0; i < prompt; ++i) tokens.push_back((i * 7 + static_cast<int>(id)) % 100);
  return Request(id, std::move(tokens), max_tokens);
}

// What `request` prints if nothing ends it but max_tokens and its context.
inline std::vector<TokenId> Oracle(const EngineRequest& request, const EngineOptions& options) {
  const auto context = static_cast<size_t>(Engine(options).context_tokens());
  std::vector<TokenId> tokens = request.tokens;
  std::vector<TokenId> output;
  for (int i = static_cast<int>(tokens.size()) - request.prompt_length;
       i < request.max_tokens && tokens.size() < context; ++i) {
    output.push_back(FakeExecutor::Choose(FakeExecutor::LogitsAfter(tokens, options), options,
                                          request.seed, static_cast<int64_t>(tokens.size()), 0)
                         .id);
    tokens.push_back(output.back());
  }
  return output;
}

// Time stands still unless a test moves it.
struct EngineGroup {
  explicit EngineGroup(const EngineOptions& engine_options = SmallOptions(),
                       std::optional<TokenId> poison = {})
      : options(engine_options), engine(options), executor(options, poison) {}

  void Submit(const EngineRequest& request) {
    const absl::Status status = engine.Submit(request, now);
    EXPECT_TRUE(status.ok()) << status;
    requests[request.id.value] = request;
  }

  // Plans as far as the engine lets it, then runs the oldest plan and returns it.
  std::optional<StepPlan> Step() {
    while (engine.outstanding() < options.steps_max) {
      std::optional<StepPlan> plan = engine.Plan(now);
      Look();
      if (!plan) break;
      for (const SequenceStart& start : plan->starts) {
        starts[start.seed].push_back(static_cast<int>(outputs[start.seed].size()));
      }
      plans.push_back(std::move(*plan));
    }
    if (plans.empty()) return std::nullopt;
    const absl::StatusOr<StepResult> result = executor.Run(plans.front());
    EXPECT_TRUE(result.ok());
    engine.Complete(*result, now);
    Look();
    std::optional<StepPlan> plan = std::move(plans.front());
    plans.pop_front();
    for (const Segment& segment : plan->segments) {
      tokens_computed += static_cast<int64_t>(segment.tokens.size());
    }
    return plan;
  }

  void Look() {
    const absl::Status status = engine.Check();
    EXPECT_TRUE(status.ok()) << status;
    for (EngineDelta& delta : engine.TakeDeltas()) {
      for (const ScoredToken& token : delta.tokens) outputs[delta.id.value].push_back(token.id);
      deltas.push_back(std::move(delta));
    }
  }

  // Runs everything to its end; every sequence that was not ended early has printed what it must.
  void RunAll() {
    while (Step()) {
    }
    EXPECT_EQ(engine.stats().running + engine.stats().waiting, 0);
    for (const auto& [id, request] : requests) {
      const EngineDelta* end = End(id);
      ASSERT_NE(end, nullptr) << id;
      if (end->finish != EngineFinish::kLength) continue;
      EXPECT_EQ(outputs[id], Oracle(request, options)) << "sequence " << id;
    }
  }

  // The last news of a sequence that has ended.
  const EngineDelta* End(uint64_t id) const {
    for (const EngineDelta& delta : deltas) {
      if (delta.id.value == id && delta.finish) return &delta;
    }
    return nullptr;
  }
  int cached_tokens(uint64_t id) const { return End(id)->cached_tokens; }

  const EngineOptions options;
  Engine engine;
  FakeExecutor executor;
  TimeUs now = 0;
  std::deque<StepPlan> plans;  // outstanding
  std::map<uint64_t, EngineRequest> requests;
  std::map<uint64_t, std::vector<TokenId>> outputs;
  std::vector<EngineDelta> deltas;
  int64_t tokens_computed = 0;
  // Output tokens at each start, by seed: for sequences whose seed is their id.
  std::map<uint64_t, std::vector<int>> starts;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_ENGINE_ENGINE_GROUP_H_
