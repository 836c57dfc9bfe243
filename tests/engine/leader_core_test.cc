#include "shard_worker/engine/leader_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "tests/engine/leader_fixture.h"

namespace facet {
namespace {

using ::testing::ElementsAre;

TEST(LeaderCore, FirstMessageSaysWhatThereIs) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  const SessionNews& news = leader.last[kA];
  EXPECT_TRUE(news.first);
  ASSERT_TRUE(news.cache.has_value());
  EXPECT_TRUE(news.cache->reset);
  EXPECT_EQ(news.state.credit_tokens, 32);
  EXPECT_EQ(news.state.kv_tokens_total, 1024);
  EXPECT_EQ(news.state.block_tokens, 16);
  EXPECT_EQ(news.state.epoch, 77u);
  EXPECT_FALSE(news.state.draining);
}

TEST(LeaderCore, SessionsHearOfTheirOwnSequencesOnly) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.core.Open(kB);
  const EngineRequest for_a = Request(5, 20), for_b = Request(40, 10);
  EXPECT_TRUE(leader.core.Submit(kA, 1, for_a, 0).ok());
  EXPECT_TRUE(leader.core.Submit(kB, 1, for_b, 0).ok());
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].tokens, Expected(for_a, leader.options_.engine));
  EXPECT_EQ(leader.answers[kB][1].tokens, Expected(for_b, leader.options_.engine));
  EXPECT_EQ(leader.answers[kA].size(), 1u);
  EXPECT_EQ(leader.last[kB].state.submits_received, 1);
  EXPECT_EQ(leader.last[kB].state.prompt_tokens_done, 45);
}

TEST(LeaderCore, TokensOfShortStepsShareAMessage) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  Leader leader(options);
  leader.core.Open(kA);
  leader.Listen();
  const EngineRequest request = Request(5, 51);
  EXPECT_TRUE(leader.core.Submit(kA, 1, request, 0).ok());
  leader.Step();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 1u) << "the first does not wait";
  const int before = leader.messages[kA];
  const TimeUs begin = leader.now;
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].tokens, Expected(request, options.engine));
  EXPECT_EQ(leader.now, begin + 50 * kStepUs) << "nor does the end";
  EXPECT_EQ(leader.messages[kA] - before, 5);
}

TEST(LeaderCore, TokensThatWaitAreToldInTimeDuringALongStep) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  const TimeUs told = leader.now;
  leader.Step();
  leader.Plan();
  EXPECT_FALSE(leader.core.HasNews(leader.now));
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 1u);
  ASSERT_EQ(leader.core.NextWake(), told + options.news_period);
  leader.now = leader.core.NextWake();
  EXPECT_TRUE(leader.core.HasNews(leader.now));
  leader.Listen();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 2u);
  // Those of a step that took longer do not wait.
  leader.now += options.news_period;
  leader.Listen();
  EXPECT_GT(leader.core.NextWake(), leader.now);
  leader.Step();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 3u);
}

TEST(LeaderCore, ManySequencesOfASessionShareFewerMessages) {
  constexpr int kSteps = 84;
  const std::map<int, int> steps_apart = {{1, 4}, {4, 4}, {6, 6}, {8, 7}};
  for (const auto& [sequences, apart] : steps_apart) {
    LeaderCoreOptions options = SmallOptions();
    options.engine.sequences_max = options.engine.waiting_max = 8;
    options.news_period = 4 * kStepUs;
    options.news_period_max = 7 * kStepUs;
    Leader leader(options);
    leader.core.Open(kA);
    for (int i = 0; i < sequences; ++i) {
      EXPECT_TRUE(leader.core.Submit(kA, i, Request(3, 100), 0).ok());
    }
    leader.Step();
    const int before = leader.messages[kA];
    for (int i = 0; i < kSteps; ++i) leader.Step();
    EXPECT_EQ(leader.messages[kA] - before, kSteps / apart) << sequences << " sequences";
  }
}

TEST(LeaderCore, TokensOfLongStepsWantNoWakeUpAndShortOnesDo) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = kStepUs / 2;
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.Plan();
  EXPECT_EQ(leader.core.NextWake(), leader.now + options.state_period);
  leader.step_us = options.news_period / 2;
  leader.Complete();
  EXPECT_TRUE(leader.core.HasNews(leader.now)) << "nobody wakes when they are due";
  leader.Listen();
  EXPECT_EQ(leader.answers[kA][1].tokens.size(), 1u);
  EXPECT_FALSE(leader.core.HasNews(leader.now));
  leader.Plan();
  EXPECT_EQ(leader.core.NextWake(), leader.now + options.news_period / 2);
}

TEST(LeaderCore, ThatASequenceHasBegunIsNewsForWhoWaitsForCredit) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.Step();
  EXPECT_FALSE(leader.core.HasNews(leader.now));
  EXPECT_TRUE(leader.core.Submit(kA, 2, Request(5, 400), leader.now).ok());
  leader.Listen();
  EXPECT_TRUE(leader.core.Plan(leader.now).has_value());
  EXPECT_TRUE(leader.core.HasNews(leader.now));
}

TEST(LeaderCore, ADeadlineThatPassesInTheQueueIsNewsAtOnce) {
  LeaderCoreOptions options = SmallOptions();
  options.news_period = 10 * kStepUs;
  options.engine.steps_max = 1;
  options.engine.sequences_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  leader.core.Open(kB);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  EngineRequest waiting = Request(5, 5);
  waiting.deadline = leader.now + kStepUs / 2;
  EXPECT_TRUE(leader.core.Submit(kB, 1, waiting, leader.now).ok());
  leader.Step();
  EXPECT_TRUE(leader.core.Plan(leader.now).has_value());
  EXPECT_TRUE(leader.core.HasNews(leader.now));
  leader.Listen();
  EXPECT_EQ(leader.answers[kB][1].finish, EngineFinish::kDeadline);
}

TEST(LeaderCore, NumberInUseIsTheRoutersFault) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok());
  const absl::Status status = leader.core.Submit(kA, 1, Request(5, 20), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  leader.RunDry();
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok()) << "it has ended: free again";
}

TEST(LeaderCore, RefusalsAreNewsAndCounted) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EngineRequest digest = Request(5, 5);
  digest.logits_digest = true;
  EXPECT_TRUE(leader.core.Submit(kA, 1, digest, 0).ok());
  EXPECT_TRUE(leader.core.Submit(kA, 2, Request(0, 5), 0).ok());
  for (uint64_t number = 3; number < 8; ++number) {
    EXPECT_TRUE(leader.core.Submit(kA, number, Request(5, 5), 0).ok());
  }
  leader.core.Drain(0);
  EXPECT_TRUE(leader.core.Submit(kA, 8, Request(5, 5), 0).ok());
  leader.Listen();
  auto& answers = leader.answers[kA];
  EXPECT_EQ(answers[1].refusal.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(answers[2].refusal.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(answers[7].refusal.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(answers[8].refusal.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(leader.core.stats().refusals, ElementsAre(1, 1, 1, 1));
  EXPECT_EQ(leader.last[kA].state.submits_received, 8);
}

TEST(LeaderCore, EndOfASessionEndsItsSequences) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.Plan();
  leader.core.Close(kA, leader.now);
  leader.core.Close(kA, leader.now);
  EXPECT_EQ(leader.core.sequences(), 0);
  leader.Step();
  leader.Step();
  EXPECT_EQ(leader.core.stats().engine.blocks_used[0], 0);
  EXPECT_EQ(leader.core.stats().finishes[static_cast<size_t>(EngineFinish::kCancelled)], 1);
}

TEST(LeaderCore, CancelEndsASequence) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 400), 0).ok());
  leader.Step();
  leader.core.Cancel(kA, 1, leader.now);
  leader.core.Cancel(kA, 9, leader.now);
  leader.core.Cancel(kB, 1, leader.now);
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].finish, EngineFinish::kCancelled);
}

TEST(LeaderCore, CreditIsWhatTheNextStepCanBegin) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(20, 3), 0).ok());
  leader.LiveUntil(leader.now + 1);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32) << "it has begun";
}

TEST(LeaderCore, NoCreditWhileEverySlotIsTaken) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.core.Open(kB);
  leader.Listen();
  for (uint64_t number = 1; number <= 4; ++number) {
    EXPECT_TRUE(leader.core.Submit(kA, number, Request(5, number == 1 ? 10 : 100), 0).ok());
  }
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 0);
  EXPECT_EQ(leader.last[kB].state.credit_tokens, 16) << "told before";
  while (!leader.answers[kA][1].finish) {
    leader.now += 50'000;  // time for everybody to hear the state
    ASSERT_TRUE(leader.Step());
    if (!leader.answers[kA][1].finish && leader.messages[kB] > 1) {
      EXPECT_EQ(leader.last[kB].state.credit_tokens, 0);
    }
  }
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32);
  EXPECT_EQ(leader.last[kB].state.credit_tokens, 1) << "at once, though nothing of its own ended";
}

TEST(LeaderCore, SessionsThatSendShareTheCredit) {
  Leader leader(SmallOptions());
  const SessionId c{3};
  for (const SessionId session : {kA, kB, c}) leader.core.Open(session);
  leader.Listen();
  EXPECT_EQ(leader.last[c].state.credit_tokens, 11) << "nobody sends";
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 50), 0).ok());
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 32) << "one sends";
  EXPECT_TRUE(leader.core.Submit(kB, 1, Request(5, 50), leader.now).ok());
  leader.Step();
  leader.Step();
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 16) << "two send";
  leader.RunDry();
  leader.LiveUntil(leader.now + 2'000'000);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 11) << "nobody has sent for a while";
}

TEST(LeaderCore, SilentSessionsHearTheStateAndIdleGroupsAnEmptyPlan) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.LiveUntil(4'000'000);
  EXPECT_GE(leader.messages[kA], 8);
  EXPECT_LE(leader.messages[kA], 11);
  EXPECT_EQ(leader.segments, 0);
}

TEST(LeaderCore, DeadlineThatPassesInAStepWantsNoWakeUp) {
  LeaderCoreOptions options = SmallOptions();
  options.engine.steps_max = 1;
  Leader leader(options);
  leader.core.Open(kA);
  EngineRequest request = Request(5, 400);
  request.deadline = 500;
  EXPECT_TRUE(leader.core.Submit(kA, 1, request, 0).ok());
  leader.Plan();
  leader.now = 600;
  leader.Listen();
  EXPECT_GT(leader.core.NextWake(), leader.now);
  leader.RunDry();
  EXPECT_EQ(leader.answers[kA][1].finish, EngineFinish::kDeadline);
}

TEST(LeaderCore, DrainingIsToldAtOnceAndEnds) {
  LeaderCoreOptions options = SmallOptions();
  options.drain = 50'000;
  Leader leader(options);
  leader.core.Open(kA);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(5, 20), 0).ok());
  leader.Step();
  leader.core.Drain(leader.now);
  leader.Listen();
  EXPECT_TRUE(leader.last[kA].state.draining);
  EXPECT_EQ(leader.last[kA].state.credit_tokens, 0);
  EXPECT_FALSE(leader.core.Drained(leader.now));
  leader.RunDry();
  EXPECT_TRUE(leader.core.Drained(leader.now));

  Leader late(options);
  late.core.Open(kA);
  EXPECT_TRUE(late.core.Submit(kA, 1, Request(5, 400), 0).ok());
  late.core.Drain(0);
  late.LiveUntil(49'000);
  EXPECT_FALSE(late.core.Drained(late.now));
  EXPECT_TRUE(late.core.Drained(50'000));
}

TEST(LeaderCore, PrefillRateIsThatOfTheStepsWithPrompts) {
  Leader leader(SmallOptions());
  leader.core.Open(kA);
  leader.Listen();
  EXPECT_EQ(leader.last[kA].state.prefill_tokens_per_s, 0);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(320, 50), 0).ok());
  leader.RunDry();
  EXPECT_NEAR(leader.last[kA].state.prefill_tokens_per_s, 32e6 / kStepUs, 1);
}

}  // namespace
}  // namespace facet
