#include "shard_worker/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "base/status.h"
#include "shard_worker/runtime/fake_executor.h"
#include "tests/engine/engine_group.h"

namespace facet::testing {
namespace {

using ::testing::HasSubstr;

// One step at a time; time stands still unless a test moves it.
struct Group {
  explicit Group(const EngineOptions& options = SmallOptions(), std::optional<TokenId> poison = {})
      : engine(options), executor(options, poison) {}

  // One step; the plan that ran, if any.
  std::optional<StepPlan> Step() {
    std::optional<StepPlan> plan = engine.Plan(now);
    if (!plan) return plan;
    const absl::StatusOr<StepResult> result = executor.Run(*plan);
    EXPECT_TRUE(result.ok());
    engine.Complete(*result, now);
    return plan;
  }
  std::vector<EngineDelta> RunAll() {
    while (Step()) {
    }
    return engine.TakeDeltas();
  }

  Engine engine;
  FakeExecutor executor;
  TimeUs now = 0;
};

std::string Refusal(const EngineRequest& request) {
  Group group;
  const absl::Status status = group.engine.Submit(request, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(group.engine.stats().waiting, 0);
  return MessageOf(status);
}

TEST(Engine, RefusalsNameTheField) {
  EngineRequest r = Request(1, 0, 4);
  EXPECT_THAT(Refusal(r), HasSubstr("tokens: the prompt is empty"));
  EXPECT_THAT(Refusal(Request(1, 48, 1)), HasSubstr("too long; at most 48 fit"));
  EXPECT_THAT(Refusal(Request(1, 49, 0)), HasSubstr("tokens: a prompt of 49 tokens"));
  r = Request(1, 3, 4);
  r.tokens[2] = 100;
  EXPECT_THAT(Refusal(r), HasSubstr("tokens[2]: 100 is not in the vocabulary of 100"));
  r.tokens[2] = -1;
  EXPECT_THAT(Refusal(r), HasSubstr("tokens[2]: -1"));
  r = Request(1, 3, -1);
  EXPECT_THAT(Refusal(r), HasSubstr("max_tokens: -1"));
  r = Request(1, 3, 1);
  r.prompt_length = 0;
  EXPECT_THAT(Refusal(r), HasSubstr("prompt_length: 0"));
  r.prompt_length = 4;
  EXPECT_THAT(Refusal(r), HasSubstr("prompt_length: 4"));
  r.prompt_length = 1;
  EXPECT_THAT(Refusal(r), HasSubstr("2 tokens of output are more than max_tokens, 1"));
  r = Request(1, 3, 1);
  r.stop_token_ids = {5, 200};
  EXPECT_THAT(Refusal(r), HasSubstr("stop_token_ids[1]: 200"));
  r.stop_token_ids.assign(1025, 5);
  EXPECT_THAT(Refusal(r), HasSubstr("stop_token_ids: 1025 ids"));
  r = Request(1, 3, 1);
  r.logprobs = 65;
  EXPECT_THAT(Refusal(r), HasSubstr("logprobs: 65"));
}

TEST(Engine, RefusalsNameTheSamplingParameter) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const auto refusal = [](auto change) {
    EngineRequest request = Request(1, 3, 1);
    change(&request.sampling);
    return Refusal(request);
  };
  using P = SamplingParams*;
  EXPECT_THAT(refusal([&](P p) { p->temperature = nan; }), HasSubstr("temperature: nan"));
  EXPECT_THAT(refusal([&](P p) { p->temperature = -1; }), HasSubstr("temperature: -1"));
  EXPECT_THAT(refusal([&](P p) { p->top_p = 0; }), HasSubstr("top_p: 0"));
  EXPECT_THAT(refusal([&](P p) { p->min_p = 1.5f; }), HasSubstr("min_p: 1.5"));
  EXPECT_THAT(refusal([&](P p) { p->top_k = -1; }), HasSubstr("top_k: -1"));
  EXPECT_THAT(refusal([&](P p) { p->repetition_penalty = 0; }), HasSubstr("repetition_penalty"));
  EXPECT_THAT(refusal([&](P p) { p->presence_penalty = infinity; }), HasSubstr("presence_penalty"));
  EXPECT_THAT(refusal([&](P p) { p->frequency_penalty = -101; }), HasSubstr("frequency_penalty"));
  EXPECT_THAT(refusal([&](P p) { p->logit_bias = {{100, 1.f}}; }), HasSubstr("logit_bias: id 100"));
  EXPECT_THAT(refusal([&](P p) {
                p->logit_bias = {{5, 1.f}, {5, 1.f}};
              }),
              HasSubstr("logit_bias: id 5"));
  EXPECT_THAT(refusal([&](P p) { p->logit_bias = {{5, nan}}; }), HasSubstr("logit_bias[5]"));
}

TEST(Engine, BannedTokenIsALegalBias) {
  Group group;
  EngineRequest request = Request(1, 3, 1);
  request.sampling.logit_bias = {{5, -std::numeric_limits<float>::infinity()}};
  EXPECT_TRUE(group.engine.Submit(request, 0).ok());
}

TEST(Engine, FullQueueIsAnswered) {
  Group group;
  for (uint64_t id = 0; id < 4; ++id) {
    EXPECT_TRUE(group.engine.Submit(Request(id, 3, 1), 0).ok());
  }
  const absl::Status status = group.engine.Submit(Request(4, 3, 1), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("4 sequences wait already"));
}

TEST(Engine, ContextIsWhatThePoolsHold) {
  EngineOptions options = SmallOptions();
  options.blocks = {3, 16};
  EXPECT_EQ(Engine(options).context_tokens(), 12);
  options.blocks = {0, 2};  // a window of 8 may touch 3 blocks of 4
  EXPECT_EQ(Engine(options).context_tokens(), 8);
  options.blocks = {0, 3};
  EXPECT_EQ(Engine(options).context_tokens(), 48);
}

TEST(Engine, DecodesGoBeforePrompts) {
  Group group;
  ASSERT_TRUE(group.engine.Submit(Request(1, 2, 10), 0).ok());
  group.Step();
  ASSERT_TRUE(group.engine.Submit(Request(2, 24, 2), 0).ok());
  ASSERT_TRUE(group.engine.Submit(Request(3, 24, 2), 0).ok());
  const std::optional<StepPlan> plan = group.Step();
  ASSERT_EQ(plan->segments.size(), 3u);
  EXPECT_EQ(plan->segments[0].tokens.size(), 1u);  // the decode
  EXPECT_EQ(plan->segments[1].tokens.size(), 8u);  // a whole chunk
  EXPECT_EQ(plan->segments[2].tokens.size(), 7u);  // what is left of the budget of 16
}

TEST(Engine, PromptsTakeLessOfAStepThatDecodes) {
  EngineOptions options = SmallOptions();
  options.mixed_prefill_max = 3;
  Group group(options);
  const auto tokens_of_prompts = [](const StepPlan& plan) {
    size_t tokens = 0;
    for (const Segment& segment : plan.segments) {
      if (segment.first_position < 8) tokens += segment.tokens.size();
    }
    return tokens;
  };
  ASSERT_TRUE(group.engine.Submit(Request(1, 8, 20), 0).ok());
  EXPECT_EQ(tokens_of_prompts(*group.Step()), 8u);  // nobody waits for a token
  ASSERT_TRUE(group.engine.Submit(Request(2, 8, 1), 0).ok());
  EXPECT_EQ(tokens_of_prompts(*group.Step()), 3u);
  EXPECT_EQ(tokens_of_prompts(*group.Step()), 3u);
  EXPECT_EQ(tokens_of_prompts(*group.Step()), 2u);
}

TEST(Engine, PromptsTakeMoreOfAStepThatDecodesMore) {
  for (const auto& [decodes, prompt] : std::map<int, size_t>{{1, 20}, {3, 24}, {6, 40}}) {
    EngineOptions options = SmallOptions();
    options.step_tokens_max = options.prefill_chunk_max = 100;
    options.sequences_max = options.waiting_max = 16;
    options.context_tokens = 128;
    options.blocks = {64, 64};
    options.mixed_prefill_max = 40;
    Group group(options);
    for (int i = 0; i < decodes; ++i) {
      ASSERT_TRUE(group.engine.Submit(Request(1 + i, 2, 20), 0).ok());
    }
    group.Step();
    ASSERT_TRUE(group.engine.Submit(Request(50, 60, 1), 0).ok());
    const auto plan = group.Step();
    EXPECT_EQ(plan->segments.back().tokens.size(), prompt) << decodes << " decode";
  }
}

TEST(Engine, EchoWithoutOutputFinishesAfterItsPrompt) {
  Group group;
  EngineRequest request = Request(1, 20, 0);
  request.prompt_logprobs = true;
  ASSERT_TRUE(group.engine.Submit(request, 0).ok());
  const std::vector<EngineDelta> deltas = group.RunAll();
  int scored = 0;
  for (const EngineDelta& delta : deltas) {
    EXPECT_TRUE(delta.tokens.empty());
    EXPECT_EQ(delta.prompt_offset, scored + 1);
    scored += static_cast<int>(delta.prompt.size());
  }
  EXPECT_EQ(scored, 19);
  EXPECT_EQ(deltas.back().finish, EngineFinish::kLength);
}

TEST(Engine, StopTokenIsTheLastTokenOfItsDelta) {
  const EngineRequest request = Request(1, 5, 10);
  Group alone;
  ASSERT_TRUE(alone.engine.Submit(request, 0).ok());
  const std::vector<EngineDelta> tokens = alone.RunAll();
  ASSERT_EQ(tokens.size(), 10u);

  Group group;
  EngineRequest stopping = request;
  stopping.stop_token_ids = {tokens[4].tokens[0].id};
  ASSERT_TRUE(group.engine.Submit(stopping, 0).ok());
  const std::vector<EngineDelta> deltas = group.RunAll();
  const EngineDelta& last = deltas.back();
  EXPECT_LE(deltas.size(), 5u);  // the id may come up earlier
  EXPECT_EQ(last.finish, EngineFinish::kStopToken);
  ASSERT_EQ(last.tokens.size(), 1u);
  EXPECT_EQ(last.tokens[0].id, stopping.stop_token_ids[0]);
}

TEST(Engine, DeadlineIsDroppedBeforeItsPrefill) {
  Group group;
  EngineRequest request = Request(1, 20, 5);
  request.deadline = 100;
  ASSERT_TRUE(group.engine.Submit(request, 10).ok());
  EXPECT_EQ(group.engine.NextDeadline(), 100);
  group.now = 100;
  EXPECT_EQ(group.Step(), std::nullopt);
  const std::vector<EngineDelta> deltas = group.engine.TakeDeltas();
  ASSERT_EQ(deltas.size(), 1u);
  EXPECT_EQ(deltas[0].finish, EngineFinish::kDeadline);
  EXPECT_EQ(deltas[0].queue_us, 90);
}

TEST(Engine, CancelFreesBlocksAtOnceBetweenSteps) {
  Group group;
  ASSERT_TRUE(group.engine.Submit(Request(1, 20, 5), 0).ok());
  group.Step();
  EXPECT_GT(group.engine.stats().blocks_used[0], 0);
  group.engine.Cancel(SequenceId{1}, 0);
  EXPECT_EQ(group.engine.stats().blocks_used[0], 0);
  EXPECT_EQ(group.engine.TakeDeltas().back().finish, EngineFinish::kCancelled);
  EXPECT_EQ(group.Step(), std::nullopt);
  EXPECT_EQ(group.engine.PlanIdle().ends.size(), 1u);  // the ranks hear of it
}

TEST(Engine, CancelDuringAStepFreesAtOnceAndDiscardsTheResult) {
  Group group;
  ASSERT_TRUE(group.engine.Submit(Request(1, 8, 5), 0).ok());
  const std::optional<StepPlan> plan = group.engine.Plan(0);
  group.engine.Cancel(SequenceId{1}, 0);
  EXPECT_EQ(group.engine.stats().blocks_used[0], 0);
  EXPECT_EQ(group.engine.TakeDeltas().back().finish, EngineFinish::kCancelled);
  group.engine.Complete(*group.executor.Run(*plan), 0);
  EXPECT_TRUE(group.engine.TakeDeltas().empty());
  EXPECT_EQ(group.engine.stats().output_tokens_done, 0);
  EXPECT_EQ(group.engine.stats().blocks_cached[0], 0);  // nobody knows whether they were computed
}

TEST(Engine, LogitsThatAreNotFiniteEndOnlyTheirSequence) {
  Group group(SmallOptions(), TokenId{77});
  EngineRequest bad = Request(1, 5, 3);
  bad.tokens[3] = 77;
  ASSERT_TRUE(group.engine.Submit(bad, 0).ok());
  EngineRequest good = Request(2, 3, 3);
  ASSERT_TRUE(group.engine.Submit(good, 0).ok());
  const std::vector<EngineDelta> deltas = group.RunAll();
  int good_tokens = 0;
  for (const EngineDelta& delta : deltas) {
    if (delta.id == bad.id) {
      EXPECT_EQ(delta.finish, EngineFinish::kError);
      EXPECT_THAT(delta.error, HasSubstr("not finite"));
    } else {
      good_tokens += static_cast<int>(delta.tokens.size());
    }
  }
  EXPECT_EQ(good_tokens, 3);
}

TEST(Engine, YoungestIsPreemptedAndContinuesWhereItStopped) {
  EngineOptions options = SmallOptions();
  options.blocks = {6, 16};  // two prompts of 10 tokens fit, two outputs do not
  Group group(options);
  ASSERT_TRUE(group.engine.Submit(Request(1, 10, 12), 0).ok());
  ASSERT_TRUE(group.engine.Submit(Request(2, 10, 12), 0).ok());
  std::vector<int> finished;
  int next_offset[3] = {0, 0, 0};
  for (const EngineDelta& delta : group.RunAll()) {
    EXPECT_EQ(delta.offset, next_offset[delta.id.value]);
    next_offset[delta.id.value] += static_cast<int>(delta.tokens.size());
    if (delta.finish) finished.push_back(static_cast<int>(delta.id.value));
  }
  EXPECT_EQ(group.engine.stats().preemptions, 1);
  EXPECT_EQ(finished, (std::vector<int>{1, 2}));
  EXPECT_EQ(next_offset[1], 12);
  EXPECT_EQ(next_offset[2], 12);
  EXPECT_EQ(group.engine.stats().prompt_tokens_done, 20);  // not counted twice
  EXPECT_EQ(group.engine.stats().output_tokens_done, 24);
}

TEST(Engine, PenaltiesGetTheWholeHistoryAtARestart) {
  EngineOptions options = SmallOptions();
  options.blocks = {6, 16};
  Group group(options);
  ASSERT_TRUE(group.engine.Submit(Request(1, 10, 12), 0).ok());
  EngineRequest request = Request(2, 10, 12);
  request.sampling.repetition_penalty = 1.5f;
  ASSERT_TRUE(group.engine.Submit(request, 0).ok());
  std::vector<SequenceStart> starts;
  while (const std::optional<StepPlan> plan = group.Step()) {
    for (const SequenceStart& start : plan->starts) starts.push_back(start);
  }
  ASSERT_EQ(starts.size(), 3u);
  EXPECT_TRUE(starts[0].history.empty());
  EXPECT_EQ(starts[1].history.size(), 10u);
  EXPECT_GT(starts[2].history.size(), 10u);
  EXPECT_EQ(starts[2].prompt_length, 10);
}

TEST(Engine, TimesAddUp) {
  Group group;
  ASSERT_TRUE(group.engine.Submit(Request(1, 16, 3), 100).ok());
  group.now = 150;
  group.Step();  // the first of two chunks
  group.now = 170;
  group.Step();
  group.now = 200;
  group.Step();
  group.now = 230;
  group.Step();
  const EngineDelta last = group.engine.TakeDeltas().back();
  EXPECT_EQ(last.finish, EngineFinish::kLength);
  EXPECT_EQ(last.queue_us, 50);
  EXPECT_EQ(last.prefill_us, 20);
  EXPECT_EQ(last.decode_us, 60);
}

TEST(EngineDeathTest, NoMoreStepsThanTheOptionsAllow) {
  EngineOptions options = SmallOptions();
  options.steps_max = 1;
  Group group(options);
  ASSERT_TRUE(group.engine.Submit(Request(1, 16, 3), 0).ok());
  ASSERT_TRUE(group.engine.Plan(0).has_value());
  EXPECT_EQ(group.engine.outstanding(), 1);
  EXPECT_DEATH(group.engine.Plan(0), "1 steps are outstanding");
}

}  // namespace
}  // namespace facet::testing
