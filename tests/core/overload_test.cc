// More work than the groups can do, in virtual time.

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/core/group_model.h"

namespace facet {
namespace {

constexpr TimeUs kSecond = 1'000'000;

// Two groups of 8 slots and 10 ms steps: with 20 tokens of output a slot is taken for about 200 ms,
// so about 80 requests a second are what there is.
constexpr double kCapacity = 80;

RouterCoreOptions WithTarget(TimeUs target) {
  RouterCoreOptions options;
  options.ttft_target_us = target;
  return options;
}

class Overload : public ::testing::TestWithParam<int> {};

TEST_P(Overload, GoodputHoldsAndFirstTokensComeInTime) {
  constexpr TimeUs kTarget = kSecond / 2;
  const TenantLoad saturating{.name = "t", .requests_per_s = 2 * kCapacity};
  ClusterModel without(WithTarget(0), {}, 2, 7);
  without.Run({saturating}, 5 * kSecond, 35 * kSecond);
  const int64_t peak = without.Total().output_tokens;
  EXPECT_GT(peak, 30 * 0.9 * 20 * kCapacity);

  ClusterModel model(WithTarget(kTarget), {}, 2, 8);
  std::vector<TenantLoad> loads;
  const int tenants = GetParam();
  for (int i = 0; i < tenants; ++i) {
    loads.push_back({.name = "t" + std::to_string(i), .requests_per_s = 5 * kCapacity / tenants});
  }
  model.Run(loads, 5 * kSecond, 35 * kSecond);
  TenantOutcome total = model.Total();
  RecordProperty("goodput_percent", static_cast<int>(100 * total.output_tokens / peak));
  RecordProperty("ttft_p99_ms", static_cast<int>(total.TtftPercentile(99) / 1000));
  EXPECT_GE(total.output_tokens, peak * 95 / 100);
  EXPECT_LE(total.TtftPercentile(99), 2 * kTarget);
  EXPECT_GT(total.refused, 0);
  // Most are refused at once and not after a wait for nothing.
  EXPECT_GT(total.refused, 5 * total.shed);
  EXPECT_TRUE(model.core().Check().ok()) << model.core().Check();

  // Normal load: nothing is refused any more, once what waited is gone.
  for (TenantLoad& load : loads) load.requests_per_s = 0.5 * kCapacity / tenants;
  const TimeUs calm = model.now();
  model.Run(loads, calm + 2 * kSecond, calm + 12 * kSecond);
  EXPECT_EQ(model.Total().refused, total.refused);
}

INSTANTIATE_TEST_SUITE_P(Tenants, Overload, ::testing::Values(1, 10));

// With all slots taken a light tenant's request waits until one is free; it does not wait for what
// the heavy tenant has sent before.
TEST(Fairness, LightTenantsWaitForASlotAndNotForTheHeavyOne) {
  std::vector<TenantLoad> light;
  for (int i = 0; i < 9; ++i) {
    light.push_back({.name = "light" + std::to_string(i), .requests_per_s = 0.05 * kCapacity});
  }
  std::vector<TenantLoad> all = light;
  all.push_back({.name = "heavy", .requests_per_s = 5 * kCapacity});
  const auto light_p99 = [](ClusterModel& model) {
    TenantOutcome total;
    for (int i = 0; i < 9; ++i) {
      const TenantOutcome& outcome = model.outcome("light" + std::to_string(i));
      EXPECT_EQ(outcome.refused + outcome.shed, 0);
      EXPECT_GT(outcome.completed, 0);
      total.ttft.insert(total.ttft.end(), outcome.ttft.begin(), outcome.ttft.end());
    }
    return total.TtftPercentile(99);
  };
  ClusterModel quiet({}, {}, 2, 3);
  quiet.Run(light, 5 * kSecond, 65 * kSecond);
  ClusterModel busy({}, {}, 2, 3);
  busy.Run(all, 5 * kSecond, 65 * kSecond);
  const TimeUs alone = light_p99(quiet), beside = light_p99(busy);
  RecordProperty("alone_ms", static_cast<int>(alone / 1000));
  RecordProperty("beside_ms", static_cast<int>(beside / 1000));
  constexpr TimeUs kSlotTime = kSecond / 5;  // for which a request has it
  EXPECT_LE(beside, alone + kSlotTime);
  // The heavy one has what is left over, and waits for its own.
  TenantOutcome& heavy = busy.outcome("heavy");
  EXPECT_GT(heavy.output_tokens, 60 * 20 * kCapacity * 0.5);
  EXPECT_GT(heavy.refused + heavy.shed, 0);
  EXPECT_GT(heavy.TtftPercentile(50), 25 * kSlotTime);
}

TEST(Fairness, FloodingTenantsShareByWeight) {
  RouterCoreOptions options;
  options.tenants.weights = {{"gold", 3}};
  ClusterModel model(options, {}, 2, 5);
  model.Run({{.name = "gold", .requests_per_s = 2 * kCapacity},
             {.name = "iron", .requests_per_s = 2 * kCapacity}},
            5 * kSecond, 65 * kSecond);
  const double ratio = static_cast<double>(model.outcome("gold").output_tokens) /
                       static_cast<double>(model.outcome("iron").output_tokens);
  EXPECT_NEAR(ratio, 3, 0.1);
}

TEST(Fairness, TokensAreSharedAndNotRequests) {
  ClusterModel model({}, {}, 2, 6);
  model.Run({{.name = "long", .requests_per_s = 2 * kCapacity, .output_tokens = 100},
             {.name = "short", .requests_per_s = 4 * kCapacity, .output_tokens = 10}},
            5 * kSecond, 65 * kSecond);
  const auto cost = [&](const char* tenant) {
    const TenantOutcome& outcome = model.outcome(tenant);
    return static_cast<double>(2 * outcome.output_tokens + 20 * outcome.completed);
  };
  EXPECT_NEAR(cost("long") / cost("short"), 1, 0.05);
}

TEST(Fairness, SequencesThatRunLongGiveWayToATenantThatWaits) {
  RouterCoreOptions options;
  options.fairness.unfair_wait_us = kSecond / 2;
  const TenantLoad hog{.name = "hog", .requests_per_s = 50, .output_tokens = 6000};
  const TenantLoad late{.name = "late", .requests_per_s = 2};
  ClusterModel model(options, {}, 1, 9);
  model.Run({hog}, kSecond, 5 * kSecond);
  model.Run({hog, late}, model.now(), model.now() + 20 * kSecond);
  EXPECT_GT(model.core().counters().preemptions, 0);
  EXPECT_LE(model.outcome("late").TtftPercentile(50), kSecond);
  options.fairness.unfair_wait_us = 0;
  ClusterModel without(options, {}, 1, 9);
  without.Run({hog}, kSecond, 5 * kSecond);
  without.Run({hog, late}, without.now(), without.now() + 20 * kSecond);
  EXPECT_EQ(without.core().counters().preemptions, 0);
  EXPECT_EQ(without.outcome("late").ttft.size(), 0u);
}

}  // namespace
}  // namespace facet
