// Step n + 1 is planned while step n runs: the same tokens, and what it may and may not contain.

#include <gtest/gtest.h>

#include "tests/engine/engine_group.h"

namespace facet::testing {
namespace {

struct PlannedGroup : EngineGroup {
  using EngineGroup::EngineGroup;
  StepPlan Plan() {
    std::optional<StepPlan> plan = engine.Plan(now);
    EXPECT_TRUE(plan.has_value());
    return plan.value_or(StepPlan());
  }
  void Complete(const StepPlan& plan) {
    engine.Complete(*executor.Run(plan), now);
    Look();
  }
};

TEST(Overlap, TokenOfThePrecedingStepStandsAsSampled) {
  PlannedGroup group;
  group.Submit(Request(1, 5, 3));
  const StepPlan prompt = group.Plan();
  const StepPlan first = group.Plan();
  EXPECT_EQ(group.engine.outstanding(), 2);
  ASSERT_EQ(first.segments.size(), 1u);
  EXPECT_EQ(first.segments[0].tokens, std::vector<TokenId>{kSampledToken});
  EXPECT_EQ(first.segments[0].first_position, 5);
  EXPECT_TRUE(first.segments[0].sample);
  group.Complete(prompt);
  EXPECT_EQ(group.outputs[1].size(), 1u);
  const StepPlan second = group.Plan();
  group.Complete(first);
  // The third token is being sampled, and it is the last one: nothing more to plan.
  EXPECT_EQ(group.engine.Plan(0), std::nullopt);
  group.Complete(second);
  EXPECT_EQ(group.engine.outstanding(), 0);
  group.RunAll();
}

TEST(Overlap, RowAfterAStopTokenIsDiscarded) {
  EngineRequest request = Request(1, 5, 10);
  request.stop_token_ids = {Oracle(request, SmallOptions())[0]};
  PlannedGroup group;
  group.Submit(request);
  const StepPlan prompt = group.Plan();
  const StepPlan wasted = group.Plan();
  group.Complete(prompt);
  ASSERT_NE(group.End(1), nullptr);
  EXPECT_EQ(group.End(1)->finish, EngineFinish::kStopToken);
  EXPECT_EQ(group.engine.stats().blocks_used[0], 0);
  // Its blocks and its slot have a new owner before the wasted row has run.
  group.Submit(Request(2, 20, 5));
  const StepPlan next = group.Plan();
  EXPECT_EQ(next.ends.size(), 1u);
  EXPECT_EQ(next.starts.size(), 1u);
  group.Complete(wasted);
  group.Complete(next);
  group.RunAll();
  EXPECT_EQ(group.outputs[1].size(), 1u);
}

TEST(Overlap, DigestIsTakenInTheOrderOfCompleteSteps) {
  PlannedGroup group;
  EngineRequest request = Request(1, 12, 4);
  request.logits_digest = true;
  group.Submit(request);
  const StepPlan first = group.Plan();
  EXPECT_EQ(group.engine.Plan(0), std::nullopt);
  group.Complete(first);
  group.RunAll();
  std::vector<TokenId> all = request.tokens;
  all.insert(all.end(), group.outputs[1].begin(), group.outputs[1].end());
  EXPECT_EQ(group.End(1)->logits_sha256, FakeExecutor::DigestOf(all, 15, group.options));
}

// The engine knows two of the three ends in advance.
TEST(Overlap, KnownEndsWasteNoRow) {
  EngineGroup group;
  group.Submit(Request(1, 5, 4));
  group.RunAll();
  EXPECT_EQ(group.tokens_computed, 5 + 3);
  EngineOptions options = SmallOptions();
  options.context_tokens = 10;
  EngineGroup full(options);
  full.Submit(Request(1, 5, 40));
  full.RunAll();
  EXPECT_EQ(full.outputs[1].size(), 5u);
  EXPECT_EQ(full.tokens_computed, 5 + 4);
}

// Two need each other's blocks: the pipeline runs dry before one of them gives way.
TEST(Overlap, NobodyIsPreemptedWhileAStepIsOutstanding) {
  EngineOptions options = SmallOptions();
  options.blocks = {6, 16};
  PlannedGroup group(options);
  group.Submit(Request(1, 10, 12));
  group.Submit(Request(2, 10, 12));
  int64_t preemptions = 0;
  std::deque<StepPlan> plans;
  while (true) {
    while (group.engine.outstanding() < 2) {
      const int outstanding = group.engine.outstanding();
      std::optional<StepPlan> plan = group.engine.Plan(0);
      if (group.engine.stats().preemptions > preemptions) {
        EXPECT_EQ(outstanding, 0);
      }
      preemptions = group.engine.stats().preemptions;
      if (!plan) break;
      plans.push_back(std::move(*plan));
    }
    if (plans.empty()) break;
    group.Complete(plans.front());
    plans.pop_front();
  }
  EXPECT_EQ(preemptions, 1);
  group.RunAll();
}

TEST(Overlap, OneStepAtATimeGivesTheSame) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    std::map<uint64_t, std::vector<TokenId>> outputs;
    for (const int steps_max : {1, 2, 3}) {
      EngineOptions options = SmallOptions();
      options.steps_max = steps_max;
      EngineGroup group(options);
      for (uint64_t id = 0; id < 4; ++id) {
        EngineRequest request = Request(id + seed, 3 + static_cast<int>(id) * 5, 20);
        request.id = SequenceId{id};
        request.stop_token_ids = {3, 14, 15, 92, 65, 35};
        group.Submit(request);
      }
      while (group.Step()) {
      }
      if (steps_max == 1) outputs = group.outputs;
      EXPECT_EQ(group.outputs, outputs) << seed;
    }
  }
}

}  // namespace
}  // namespace facet::testing
