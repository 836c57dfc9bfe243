#include "shard_worker/service/peer_watch.h"

#include <gtest/gtest.h>

#include "base/status.h"

namespace facet {
namespace {

constexpr BeatOptions kOptions;  // dead after 2 s

TEST(PeerWatch, SilenceIsDeath) {
  PeerWatch watch(kOptions, 0);
  watch.Beat({1, false}, 1'000'000);
  EXPECT_FALSE(watch.Dead("rank 1", 2'999'999));
  const std::optional<Break> dead = watch.Dead("rank 1", 3'000'000);
  ASSERT_TRUE(dead);
  EXPECT_EQ(dead->cause, BreakCause::kPeerSilent);
  EXPECT_EQ(MessageOf(dead->status), "rank 1 has been silent for 2.0 s");
}

TEST(PeerWatch, WhoNeverSpokeIsSilentSinceItCame) {
  PeerWatch watch(kOptions, 500'000);
  EXPECT_FALSE(watch.Dead("rank 1", 2'400'000));
  EXPECT_TRUE(watch.Dead("rank 1", 2'500'000));
}

TEST(PeerWatch, StandingStillInAStepIsDeath) {
  PeerWatch watch(kOptions, 0);
  for (TimeUs now = 0; now <= 2'000'000; now += 250'000) watch.Beat({7, true}, now);
  EXPECT_FALSE(watch.Dead("rank 1", 1'999'999));
  const std::optional<Break> dead = watch.Dead("rank 1", 2'000'000);
  ASSERT_TRUE(dead);
  EXPECT_EQ(dead->cause, BreakCause::kPeerStuck);
}

TEST(PeerWatch, SlowStepIsNotDeath) {
  PeerWatch watch(kOptions, 0);
  uint64_t moved = 0;
  for (TimeUs now = 0; now <= 60'000'000; now += 250'000) {
    if (now % 1'750'000 == 0) ++moved;
    watch.Beat({moved, true}, now);
    EXPECT_FALSE(watch.Dead("rank 1", now)) << now;
  }
}

TEST(PeerWatch, StandingStillOutsideAStepIsRest) {
  PeerWatch watch(kOptions, 0);
  for (TimeUs now = 0; now <= 10'000'000; now += 250'000) {
    watch.Beat({7, false}, now);
    EXPECT_FALSE(watch.Dead("rank 1", now));
    EXPECT_EQ(watch.Age(now), 0);
  }
  watch.Beat({7, true}, 10'250'000);
  EXPECT_FALSE(watch.Dead("rank 1", 10'250'000)) << "the step has just begun";
}

TEST(PeerWatch, PauseOfTheWatcherIsNotThePeers) {
  PeerWatch watch(kOptions, 0);
  watch.Beat({7, true}, 0);
  watch.Excuse(10'000'000);
  EXPECT_FALSE(watch.Dead("rank 1", 11'900'000));
  EXPECT_TRUE(watch.Dead("rank 1", 12'000'000));
}

}  // namespace
}  // namespace facet
