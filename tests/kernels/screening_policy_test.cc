// How much of the output layer searches read at first, and when they give screening up.

#include "kernels/cpu/screening_policy.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

constexpr int kGranules = 80;
constexpr ScreeningPolicy::Cost kCheap = {.first = 0.55, .granules = 0.05, .completed = 0.02};
constexpr ScreeningPolicy::Cost kDear = {.first = 0.6, .granules = 0.05, .completed = 0.8};

// Of `searches` that cost so much if they are screened, how many are.
int Screened(ScreeningPolicy* policy, SearchKind kind, int searches,
             const ScreeningPolicy::Cost& cost) {
  int screened = 0;
  for (int i = 0; i < searches; ++i) {
    if (policy->Granules(kind, kGranules) < 0) continue;
    policy->Record(kind, cost);
    ++screened;
  }
  return screened;
}

TEST(ScreeningPolicy, ScreensAsLongAsItPays) {
  ScreeningPolicy policy;
  EXPECT_EQ(Screened(&policy, SearchKind::kGreedy, 1000, kCheap), 1000);
}

TEST(ScreeningPolicy, StopsWhereItDoesNotAndTriesLessAndLessOften) {
  ScreeningPolicy policy;
  EXPECT_LT(Screened(&policy, SearchKind::kGreedy, 100, kDear), 40);
  Screened(&policy, SearchKind::kGreedy, 4000, kDear);
  EXPECT_LE(Screened(&policy, SearchKind::kGreedy, 10'000, kDear), 20);
}

TEST(ScreeningPolicy, ComesBackWhenItPaysAgain) {
  ScreeningPolicy policy;
  Screened(&policy, SearchKind::kGreedy, 2000, kDear);
  const ScreeningOptions options;
  Screened(&policy, SearchKind::kGreedy, 2 * options.pause_max, kCheap);
  EXPECT_EQ(Screened(&policy, SearchKind::kGreedy, 1000, kCheap), 1000);
}

TEST(ScreeningPolicy, KindsOfSearchesAreJudgedApart) {
  ScreeningPolicy policy;
  Screened(&policy, SearchKind::kTop, 1000, kDear);
  EXPECT_EQ(Screened(&policy, SearchKind::kSampled, 100, kCheap), 100);
}

TEST(ScreeningPolicy, ReadsMoreAtFirstWhereMuchIsCompletedAndLessWhereNothingIs) {
  ScreeningPolicy policy;
  const ScreeningOptions options;
  const int first = policy.Granules(SearchKind::kGreedy, kGranules);
  EXPECT_EQ(first, kGranules * options.first_share / 100);
  for (int i = 0; i < 200; ++i) policy.Record(SearchKind::kGreedy, {0.5, 0.05, 0.2});
  EXPECT_EQ(policy.Granules(SearchKind::kGreedy, kGranules), kGranules * options.most_share / 100);
  for (int i = 0; i < 200; ++i) policy.Record(SearchKind::kGreedy, {0.5, 0.05, 0});
  EXPECT_EQ(policy.Granules(SearchKind::kGreedy, kGranules), kGranules * options.least_share / 100);
}

}  // namespace
}  // namespace facet
