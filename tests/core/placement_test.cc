#include "router/core/placement.h"

#include <gtest/gtest.h>

#include <map>

#include "base/prefix_hash.h"
#include "router/core/prefix_mirror.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 4;

class PlacementTest : public ::testing::Test {
 protected:
  GroupId Add(const GroupState& state, std::vector<uint64_t> cached = {}, int slots = 0) {
    const GroupId id = groups_.Add();
    groups_.Up(
        id,
        {.fingerprint = "f", .context_tokens = 1000, .block_tokens = kBlockTokens, .slots = slots});
    groups_.CacheNews(id, {.reset = true, .stored = std::move(cached)});
    groups_.State(id, state, 0);
    return id;
  }
  // The choice for a prompt of 40 tokens, i.e. 10 links.
  std::optional<PlacementChoice> Choose(std::optional<GroupId> avoid = {}) {
    const auto links = [this](int block_tokens) -> std::span<const uint64_t> {
      EXPECT_EQ(block_tokens, kBlockTokens);
      ++asked_;
      return links_;
    };
    EXPECT_TRUE(groups_.Check().ok()) << groups_.Check();
    return placement_.Choose({.tokens = 40, .avoid = avoid, .links = links});
  }
  std::vector<uint64_t> First(int count) { return {links_.begin(), links_.begin() + count}; }

  PlacementOptions options_{.prefix_skew_max = 4, .prefix_patience_us = 500'000};
  GroupTable groups_{/*mirror_links_max=*/100, /*now=*/0};
  Placement placement_{options_, groups_, /*seed=*/1};
  std::vector<uint64_t> links_ = PrefixLinks(7, std::vector<TokenId>(40, 3), kBlockTokens);
  int asked_ = 0;
};

TEST_F(PlacementTest, TheLongestCachedPrefixWins) {
  Add({.credit_tokens = 100}, First(2));
  const GroupId best = Add({.running = 3, .credit_tokens = 100}, First(6));
  Add({.credit_tokens = 100}, First(5));
  const auto choice = Choose();
  EXPECT_EQ(choice->group, best);
  EXPECT_EQ(choice->cached_tokens, 6 * kBlockTokens);
}

TEST_F(PlacementTest, TheLastTokenIsNeverCached) {
  Add({.credit_tokens = 100}, First(10));
  EXPECT_EQ(Choose()->cached_tokens, 39);
}

TEST_F(PlacementTest, ALinkInTheMiddleMayBeMissing) {
  Add({.credit_tokens = 100}, {links_[4]});
  EXPECT_EQ(Choose()->cached_tokens, 5 * kBlockTokens);
}

TEST_F(PlacementTest, WithoutPrefixesTheSoonestFirstTokenWins) {
  Add({.credit_tokens = 100, .pending_prompt_tokens = 200, .prefill_tokens_per_s = 1000});
  const GroupId fast = Add({.running = 9,
                            .credit_tokens = 100,
                            .pending_prompt_tokens = 900,
                            .prefill_tokens_per_s = 10'000});
  EXPECT_EQ(Choose()->group, fast);
  EXPECT_EQ(asked_, 0);  // no links are computed for empty caches
  // What was submitted since the state counts too.
  groups_.Start(fast, 90);
  groups_.State(fast,
                {.running = 9,
                 .credit_tokens = 10'000,
                 .submits_received = 0,
                 .pending_prompt_tokens = 2500,
                 .prefill_tokens_per_s = 10'000},
                0);
  EXPECT_NE(Choose()->group, fast);
}

TEST_F(PlacementTest, AtEqualTimesTheFewestSequencesWin) {
  Add({.running = 3, .credit_tokens = 100, .pending_prompt_tokens = 4});
  const GroupId idle = Add({.running = 1, .waiting = 1, .credit_tokens = 100});
  EXPECT_EQ(Choose()->group, idle);
}

TEST_F(PlacementTest, AHotPrefixDoesNotPinEverythingToACrowdedGroup) {
  const GroupId hot = Add({.running = 4, .credit_tokens = 100}, First(9));
  const GroupId cold = Add({.credit_tokens = 100});
  EXPECT_EQ(Choose()->group, hot);
  groups_.State(hot, {.running = 5, .credit_tokens = 100}, 0);
  EXPECT_EQ(Choose()->group, cold);
  groups_.State(cold, {.running = 3, .credit_tokens = 100}, 0);
  EXPECT_EQ(Choose()->group, hot);
}

TEST_F(PlacementTest, APrefixIsNotWorthAnyWait) {
  const GroupId hot = Add({.credit_tokens = 100, .pending_prompt_tokens = 536}, First(9));
  const GroupId cold = Add({.credit_tokens = 100});
  EXPECT_EQ(Choose()->group, hot);  // 540 tokens there, 40 here: 500 ms at the assumed rate
  groups_.State(hot, {.credit_tokens = 100, .pending_prompt_tokens = 537}, 0);
  EXPECT_EQ(Choose()->group, cold);
}

TEST_F(PlacementTest, AGroupWithoutCreditOrASlotIsNoCandidate) {
  const GroupId hot = Add({.credit_tokens = 0}, First(9));
  const GroupId full = Add({.running = 2, .credit_tokens = 0}, {}, 2);
  EXPECT_FALSE(Choose());
  EXPECT_FALSE(groups_.any_room());
  groups_.State(full, {.running = 1, .credit_tokens = 100}, 0);
  EXPECT_EQ(Choose()->group, full);
  // It runs two at most: one more fits, however short it is.
  groups_.Start(full, 1);
  EXPECT_FALSE(Choose());
  groups_.End(full);
  EXPECT_EQ(Choose()->group, full);
  // Other routers' sequences count, too.
  groups_.State(full, {.running = 2, .credit_tokens = 100}, 0);
  EXPECT_FALSE(Choose());
  groups_.State(hot, {.credit_tokens = 1}, 0);
  EXPECT_EQ(Choose()->group, hot);
}

TEST_F(PlacementTest, TheAvoidedGroupIsTheLastResort) {
  const GroupId failed = Add({.credit_tokens = 100}, First(9));
  EXPECT_EQ(Choose(failed)->group, failed);
  const GroupId other = Add({.running = 90, .credit_tokens = 100});
  EXPECT_EQ(Choose(failed)->group, other);
}

TEST_F(PlacementTest, AmongManyTheBetterOfTwoIsDrawn) {
  std::map<GroupId, int> chosen;
  for (int i = 0; i < 10; ++i) Add({.running = i, .credit_tokens = 100});
  for (int i = 0; i < 2000; ++i) ++chosen[Choose()->group];
  // The most loaded one is never the better of two; the least loaded one is in a fifth of all.
  EXPECT_FALSE(chosen.contains(GroupId{9}));
  EXPECT_NEAR(chosen[GroupId{0}], 400, 60);
  EXPECT_GT(chosen[GroupId{5}], 100);
  // The same draws again for the same seed.
  Placement again(options_, groups_, 1);
  const auto links = [this](int) -> std::span<const uint64_t> { return links_; };
  std::map<GroupId, int> repeated;
  for (int i = 0; i < 2000; ++i) ++repeated[again.Choose({.tokens = 40, .links = links})->group];
  EXPECT_EQ(chosen, repeated);
}

TEST(PrefixMirror, FollowsTheNewsOfItsSession) {
  PrefixMirror mirror(3);
  const std::vector<uint64_t> chain{1, 2, 3, 4};
  mirror.Apply({.stored = {1, 2}});  // nothing yet: the session has not begun
  EXPECT_EQ(mirror.Match(chain), 0);
  mirror.Apply({.reset = true, .stored = {1}});
  EXPECT_EQ(mirror.Match(chain), 1);
  mirror.Apply({.stored = {2, 3, 4}});
  EXPECT_EQ(mirror.links(), 3);  // bounded
  EXPECT_EQ(mirror.Match(chain), 3);
  mirror.Apply({.stored = {4}, .evicted = {3}});
  EXPECT_EQ(mirror.Match(chain), 4);
  mirror.Apply({.reset = true, .stored = {2}});
  EXPECT_EQ(mirror.links(), 1);
  EXPECT_EQ(mirror.Match(chain), 2);
}

TEST(GroupTable, ForgetsTheMirrorWithTheSession) {
  GroupTable groups(10, 0);
  const GroupId id = groups.Add();
  groups.CacheNews(id, {.reset = true, .stored = {1}});
  EXPECT_EQ(groups.mirror(id).links(), 0);
  groups.Up(id, {.context_tokens = 10, .block_tokens = 4});
  groups.CacheNews(id, {.reset = true, .stored = {1}});
  EXPECT_EQ(groups.mirror(id).links(), 1);
  groups.Down(id, 0);
  EXPECT_EQ(groups.mirror(id).links(), 0);
  groups.Up(id, {.context_tokens = 10, .block_tokens = 4});
  groups.CacheNews(id, {.stored = {1}});  // of the old session
  EXPECT_EQ(groups.mirror(id).links(), 0);
  EXPECT_TRUE(groups.Check().ok()) << groups.Check();
}

}  // namespace
}  // namespace facet
