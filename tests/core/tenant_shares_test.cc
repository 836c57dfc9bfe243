#include "router/core/tenant_shares.h"

#include <gtest/gtest.h>

#include "router/core/retry_budget.h"
#include "router/core/service_rate.h"

namespace facet {
namespace {

constexpr int64_t kUnit = 1000;

TEST(TenantShares, ChargesPromptsAndOutputByWeight) {
  TenantShares shares({.prompt_cost = 1, .output_cost = 2, .weights = {{"gold", 4}}});
  const TenantSlot gold = *shares.Enter("gold");
  const TenantSlot iron = *shares.Enter("iron");
  for (const TenantSlot slot : {gold, iron}) {
    shares.ChargePlacement(slot, 100, 50, /*chosen=*/true);
    shares.ChargeOutput(slot, 10);
  }
  EXPECT_EQ(shares.counter(iron), 120 * kUnit);
  EXPECT_EQ(shares.counter(gold), 30 * kUnit);
  EXPECT_EQ(shares.CostOf(100, 10), 120 * kUnit);
  const TenantStats stats = shares.Stats(gold);
  EXPECT_EQ(stats.name, "gold");
  EXPECT_EQ(stats.prompt_tokens, 100);
  EXPECT_EQ(stats.output_tokens, 10);
  EXPECT_EQ(stats.live_requests, 1);
}

TEST(TenantShares, TheGapIsBoundedByWhatATenantWasChosenFor) {
  TenantShares shares({});
  const TenantSlot a = *shares.Enter("a");
  shares.ChargePlacement(a, 30, 5, /*chosen=*/true);
  EXPECT_EQ(shares.gap_bound(a), (30 + 2 * 5) * kUnit);
  shares.ChargePlacement(a, 10, 5, /*chosen=*/true);
  EXPECT_EQ(shares.floor(), 30 * kUnit);
  EXPECT_EQ(shares.gap_bound(a), (10 + 2 * 10) * kUnit);
  shares.ChargePlacement(a, 7, 1, /*chosen=*/false);
  EXPECT_EQ(shares.gap_bound(a), (17 + 2 * 11) * kUnit);
  shares.ChargeOutput(a, 11);
  EXPECT_TRUE(shares.Check().ok()) << shares.Check();
  EXPECT_EQ(shares.counter(a) - shares.floor(), shares.gap_bound(a));
}

TEST(TenantShares, CheckSeesATenantBeyondItsGap) {
  TenantShares shares({});
  const TenantSlot a = *shares.Enter("a");
  shares.ChargePlacement(a, 10, 5, /*chosen=*/true);
  shares.ChargeOutput(a, 5);
  shares.ChargePlacement(a, 0, 1, /*chosen=*/false);
  EXPECT_TRUE(shares.Check().ok());
  shares.ChargeOutput(a, 2);  // one more than was promised
  EXPECT_FALSE(shares.Check().ok());
}

TEST(TenantShares, LiftingNeverLowers) {
  TenantShares shares({});
  const TenantSlot a = *shares.Enter("a");
  const TenantSlot b = *shares.Enter("b");
  shares.ChargePlacement(a, 50, 0, /*chosen=*/true);
  shares.Lift(b, 20 * kUnit);
  EXPECT_EQ(shares.counter(b), 20 * kUnit);
  shares.Lift(a, 20 * kUnit);
  EXPECT_EQ(shares.counter(a), 50 * kUnit);
  shares.Lift(b, std::nullopt);
  EXPECT_EQ(shares.counter(b), 20 * kUnit);
  EXPECT_TRUE(shares.Check().ok()) << shares.Check();
}

TEST(TenantShares, RemembersBoundedlyAndForgetsTheIdleWithTheLeast) {
  TenantShares shares({.tenants_max = 2});
  const TenantSlot a = *shares.Enter("a");
  const TenantSlot b = *shares.Enter("b");
  EXPECT_FALSE(shares.Enter("c"));
  shares.ChargePlacement(a, 10, 0, /*chosen=*/true);
  shares.Leave(a);
  shares.Leave(b);
  EXPECT_TRUE(shares.Check().ok()) << shares.Check();
  EXPECT_EQ(shares.Enter("c"), b);
  EXPECT_EQ(shares.Enter("a"), a);
  EXPECT_EQ(shares.counter(a), 10 * kUnit);  // remembered
  shares.Leave(a);
  EXPECT_EQ(shares.Enter("b"), a);
  EXPECT_EQ(shares.counter(a), shares.floor());
  EXPECT_TRUE(shares.Check().ok()) << shares.Check();
}

TEST(TenantShares, ExpectsOutputsLikeTheLatest) {
  TenantShares shares({});
  const TenantSlot a = *shares.Enter("a");
  EXPECT_EQ(shares.ExpectedOutput(a, 500), 500);
  shares.NoteLength(a, 80);
  EXPECT_EQ(shares.ExpectedOutput(a, 500), 80);
  EXPECT_EQ(shares.ExpectedOutput(a, 50), 50);
  shares.NoteLength(a, 0);
  EXPECT_EQ(shares.ExpectedOutput(a, 500), 70);
}

TEST(ServiceRate, CountsOnlyWhatIsDoneWhileRequestsWait) {
  ServiceRate rate(1'000'000);
  rate.Add(1000);
  EXPECT_EQ(rate.PerSecond(5'000'000), 0);
  rate.SetBusy(true, 5'000'000);
  rate.Add(10);
  EXPECT_EQ(rate.PerSecond(5'050'000), 0);  // too short to tell
  EXPECT_DOUBLE_EQ(rate.PerSecond(5'100'000), 100);
  rate.SetBusy(false, 5'200'000);
  rate.Add(1000);
  EXPECT_DOUBLE_EQ(rate.PerSecond(99'000'000), 50);
  rate.Reset(99'000'000);
  EXPECT_EQ(rate.PerSecond(99'000'000), 0);
}

TEST(ServiceRate, ForgetsWhatIsOlderThanTwoWindows) {
  ServiceRate rate(1'000'000);
  TimeUs now = 0;
  rate.SetBusy(true, now);
  for (const int64_t work : {1000, 10, 10, 10}) {
    rate.Add(work);
    rate.SetBusy(true, now += 1'000'000);
  }
  EXPECT_DOUBLE_EQ(rate.PerSecond(now), 10);
}

TEST(RetryBudget, IsABurstAndAPartOfTheRequests) {
  RetryBudget budget({.per_thousand_requests = 500, .burst = 2});
  budget.Earn();
  EXPECT_TRUE(budget.Spend());
  EXPECT_TRUE(budget.Spend());
  EXPECT_FALSE(budget.Spend());
  budget.Earn();
  EXPECT_FALSE(budget.Spend());
  budget.Earn();
  EXPECT_TRUE(budget.Spend());
  EXPECT_FALSE(budget.Spend());
}

}  // namespace
}  // namespace facet
