#include "shard_worker/runtime/fake_executor.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

EngineOptions SmallOptions() {
  EngineOptions options;
  options.block_tokens = 2;
  options.blocks = {8, 8};
  options.window = 3;
  options.vocabulary_size = 1000;
  options.sequences_max = 2;
  return options;
}

StepPlan OnePlan(std::vector<TokenId> tokens) {
  StepPlan plan;
  plan.step = 1;
  SequenceStart start;
  start.slot = SlotId{0};
  start.seed = 7;
  plan.starts.push_back(start);
  Segment segment;
  segment.slot = SlotId{0};
  segment.tokens = std::move(tokens);
  segment.blocks = {{{3, 1, 5}, {2, 0, 6}}};
  segment.sample = true;
  plan.segments.push_back(segment);
  return plan;
}

TEST(FakeExecutor, AnswersWhatPlainTokensGive) {
  const EngineOptions options = SmallOptions();
  FakeExecutor executor(options);
  const auto result = executor.Run(OnePlan({10, 11, 12, 13, 14}));
  ASSERT_TRUE(result.ok());
  const std::vector<TokenId> history = {10, 11, 12, 13, 14};
  const ScoredToken expected =
      FakeExecutor::Choose(FakeExecutor::LogitsAfter(history, options), options, 7, 5, 0);
  EXPECT_EQ(result->segments[0].sampled[0].id, expected.id);
}

TEST(FakeExecutor, AWrongBlockChangesTheAnswer) {
  const EngineOptions options = SmallOptions();
  for (int pool = 0; pool < kBlockPools; ++pool) {
    FakeExecutor executor(options);
    StepPlan plan = OnePlan({10, 11, 12, 13});
    ASSERT_TRUE(executor.Run(plan).ok());
    plan.step = 2;
    plan.starts.clear();
    plan.segments[0].first_position = 4;
    plan.segments[0].tokens = {14};
    std::swap(plan.segments[0].blocks[pool][0], plan.segments[0].blocks[pool][1]);
    const auto result = executor.Run(plan);
    const std::vector<TokenId> history = {10, 11, 12, 13, 14};
    const ScoredToken right =
        FakeExecutor::Choose(FakeExecutor::LogitsAfter(history, options), options, 7, 5, 0);
    EXPECT_NE(result->segments[0].sampled[0], right) << "pool " << pool;
  }
}

// The step that continues OnePlan({10, 11, 12, 13}) with `tokens` at `position`.
StepPlan NextPlan(std::vector<TokenId> tokens, int64_t position) {
  StepPlan plan = OnePlan(std::move(tokens));
  plan.step = 2;
  plan.starts.clear();
  plan.segments[0].first_position = position;
  return plan;
}

TEST(FakeExecutor, SampledTokenIsTheOneOfTheStepBefore) {
  const EngineOptions options = SmallOptions();
  FakeExecutor executor(options);
  const TokenId first = executor.Run(OnePlan({10, 11, 12, 13}))->segments[0].sampled[0].id;
  const auto result = executor.Run(NextPlan({kSampledToken}, 4));
  const std::vector<TokenId> history = {10, 11, 12, 13, first};
  EXPECT_EQ(result->segments[0].sampled[0].id,
            FakeExecutor::Choose(FakeExecutor::LogitsAfter(history, options), options, 7, 5, 0).id);
}

// A sequence may begin, or go on, after whole blocks that others have computed.
TEST(FakeExecutor, CachedPrefixIsReadFromItsBlocks) {
  const EngineOptions options = SmallOptions();
  FakeExecutor executor(options);
  ASSERT_TRUE(executor.Run(OnePlan({10, 11, 12, 13})).ok());
  StepPlan plan = NextPlan({14}, 4);
  plan.starts = OnePlan({}).starts;
  plan.starts[0].slot = plan.segments[0].slot = SlotId{1};
  const auto result = executor.Run(plan);
  const std::vector<TokenId> history = {10, 11, 12, 13, 14};
  EXPECT_EQ(result->segments[0].sampled[0].id,
            FakeExecutor::Choose(FakeExecutor::LogitsAfter(history, options), options, 7, 5, 0).id);
}

TEST(FakeExecutorDeathTest, StopsAtAPlanThatSkipsPositions) {
  FakeExecutor executor(SmallOptions());
  ASSERT_TRUE(executor.Run(OnePlan({10, 11, 12})).ok());
  EXPECT_DEATH(executor.Run(NextPlan({14}, 4)).IgnoreError(), "position 4 after 3");
  StepPlan fresh = OnePlan({kSampledToken});
  fresh.step = 2;
  fresh.starts[0].slot = fresh.segments[0].slot = SlotId{1};
  EXPECT_DEATH(executor.Run(fresh).IgnoreError(), "no token was sampled before");
}

TEST(FakeExecutorDeathTest, StopsAtABrokenPlan) {
  FakeExecutor executor(SmallOptions());
  StepPlan plan = OnePlan({10, 11});
  plan.starts.clear();
  EXPECT_DEATH(executor.Run(plan).IgnoreError(), "was not started");
  plan = OnePlan({10, 11, 12, 13, 14, 15, 16});
  EXPECT_DEATH(executor.Run(plan).IgnoreError(), "no block for position 6");
}

}  // namespace
}  // namespace facet
