#include "shard_worker/engine/canary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "base/status.h"
#include "tests/engine/leader_fixture.h"

namespace facet {
namespace {

using ::testing::HasSubstr;

LeaderCoreOptions WithCanary() {
  LeaderCoreOptions options = SmallOptions();
  options.canary.enabled = true;
  options.canary.rest_factor = 2000;
  return options;
}

TEST(Canary, OpensTheEpoch) {
  Leader leader(WithCanary());
  EXPECT_EQ(leader.core.ready_until(), 0);
  leader.Step();
  EXPECT_EQ(leader.core.ready_until(), 0);
  leader.Step();
  EXPECT_GT(leader.core.ready_until(), leader.now + 1'000'000);
  EXPECT_EQ(leader.core.stats().canary.runs, 1);
  EXPECT_EQ(leader.core.stats().prompt_tokens_done, 0);
  EXPECT_EQ(leader.core.stats().output_tokens_done, 0);
  ASSERT_TRUE(leader.core.canary_answer().has_value());
  EXPECT_EQ(leader.core.canary_answer()->tokens.size(), 2u);
}

TEST(Canary, RestsInProportionToItsCost) {
  Leader leader(WithCanary());
  leader.LiveUntil(20'000'000);
  // Two steps of 1 ms, and 2000 times as long of rest.
  EXPECT_EQ(leader.core.stats().canary.runs, 5);
  EXPECT_GT(leader.core.ready_until(), leader.now);
  EXPECT_TRUE(leader.core.verdict().ok());
}

TEST(Canary, RealWorkThatGoesForwardNeedsNone) {
  Leader leader(WithCanary());
  leader.core.Open(kA);
  leader.Step();
  leader.Step();
  uint64_t number = 0;
  for (const TimeUs start = leader.now; leader.now < start + 10'000'000;) {
    if (leader.core.sequences() == 0) {
      EXPECT_TRUE(leader.core.Submit(kA, ++number, Request(300, 100), leader.now).ok());
    }
    ASSERT_TRUE(leader.Step());
    EXPECT_GT(leader.core.ready_until(), leader.now);
  }
  EXPECT_EQ(leader.core.stats().canary.runs, 1);
}

TEST(Canary, StepThatStandsStillEndsReadiness) {
  Leader leader(WithCanary());
  leader.core.Open(kA);
  leader.LiveUntil(10'000);
  EXPECT_TRUE(leader.core.Submit(kA, 1, Request(30, 10), leader.now).ok());
  leader.Plan();
  EXPECT_EQ(leader.core.ready_until(), leader.now + 1'500'000);
  leader.now += 1'000'000;
  leader.core.Moved(leader.now);  // a long step, and layers get done
  EXPECT_EQ(leader.core.ready_until(), leader.now + 1'500'000);
}

TEST(Canary, ThatNobodyRunsEndsReadiness) {
  Leader leader(WithCanary());
  leader.LiveUntil(10'000);
  const TimeUs ready = leader.core.ready_until();
  EXPECT_LE(ready, leader.now + 5'000'000);
}

TEST(Canary, OtherAnswerCondemnsTheGroup) {
  Leader good(WithCanary());
  good.LiveUntil(10'000);
  CanaryAnswer answer = *good.core.canary_answer();

  Leader same(WithCanary(), answer);
  same.LiveUntil(10'000);
  EXPECT_TRUE(same.core.verdict().ok());

  answer.logprob_bits[1] ^= 1;
  Leader other(WithCanary(), answer);
  other.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(other.core.verdict()), HasSubstr("has changed"));
  EXPECT_EQ(other.core.ready_until(), 0);
  EXPECT_EQ(other.core.stats().canary.failures, 1);
  EXPECT_EQ(*other.core.canary_answer(), answer) << "the first answer stays the measure";
}

// Where bits depend on the batch, as in --arithmetic=fast.
TEST(Canary, OtherBitsAreNoFaultWhereBitsAreNotExact) {
  Leader good(WithCanary());
  good.LiveUntil(10'000);
  CanaryAnswer answer = *good.core.canary_answer();
  answer.logprob_bits[1] ^= 1;
  LeaderCoreOptions options = WithCanary();
  options.canary.exact = false;
  Leader other(options, answer);
  other.LiveUntil(10'000);
  EXPECT_TRUE(other.core.verdict().ok());
  EXPECT_EQ(other.core.stats().canary.failures, 0);
  Leader broken(options, {}, TokenId{2});
  broken.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(broken.core.verdict()), HasSubstr("not finite"));
}

TEST(Canary, ThatIsNotANumberCondemnsTheGroup) {
  Leader leader(WithCanary(), {}, TokenId{2});  // one of its prompt
  leader.LiveUntil(10'000);
  EXPECT_THAT(MessageOf(leader.core.verdict()), HasSubstr("not finite"));
  EXPECT_EQ(leader.core.ready_until(), 0);
}

}  // namespace
}  // namespace facet
