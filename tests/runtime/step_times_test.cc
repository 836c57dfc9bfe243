#include "shard_worker/runtime/step_times.h"

#include <gtest/gtest.h>

#include <thread>

namespace facet {
namespace {

StepTimes TimesAfter(int64_t steps) {
  const auto s = static_cast<double>(steps);
  StepTimes times{steps, 0.5 * s, 0.25 * s, 0.125 * s, {2 * steps, 3 * steps, 4 * steps, 5 * s}};
  times.profile.steps = 6 * steps;
  times.profile.rows = 7 * steps;
  times.profile.seconds = 8 * s;
  for (OperationTotals& operation : times.profile.operations) {
    operation = {9 * steps, 10 * s, 11 * s, 12 * s};
  }
  return times;
}

void ExpectEqual(const StepTimes& a, const StepTimes& b) {
  EXPECT_EQ(a.steps, b.steps);
  EXPECT_EQ(a.compute_s, b.compute_s);
  EXPECT_EQ(a.collective_s, b.collective_s);
  EXPECT_EQ(a.wait_s, b.wait_s);
  EXPECT_EQ(a.head.rows, b.head.rows);
  EXPECT_EQ(a.head.screened, b.head.screened);
  EXPECT_EQ(a.head.completed, b.head.completed);
  EXPECT_EQ(a.head.bytes, b.head.bytes);
  EXPECT_EQ(a.profile.steps, b.profile.steps);
  EXPECT_EQ(a.profile.rows, b.profile.rows);
  EXPECT_EQ(a.profile.seconds, b.profile.seconds);
  for (size_t i = 0; i < a.profile.operations.size(); ++i) {
    EXPECT_EQ(a.profile.operations[i].calls, b.profile.operations[i].calls);
    EXPECT_EQ(a.profile.operations[i].seconds, b.profile.operations[i].seconds);
    EXPECT_EQ(a.profile.operations[i].bytes, b.profile.operations[i].bytes);
    EXPECT_EQ(a.profile.operations[i].operations, b.profile.operations[i].operations);
  }
}

TEST(StepTimes, LooksFromAnotherThreadAddUpToWhatWasStored) {
  constexpr int64_t kSteps = 20000;
  PublishedTimes published;
  ExpectEqual(published.Load(), StepTimes());
  std::thread steps([&] {
    for (int64_t i = 1; i <= kSteps; ++i) published.Store(TimesAfter(i));
  });
  StepTimes seen, sum;
  const auto look = [&] {
    const StepTimes now = published.Load();
    StepTimes since = now;
    since.Subtract(seen);
    EXPECT_GE(since.steps, 0);
    EXPECT_GE(since.profile.operations.back().operations, 0);
    seen = now;
    sum.steps += since.steps;
    sum.wait_s += since.wait_s;
  };
  while (sum.steps < kSteps) look();
  steps.join();
  look();
  EXPECT_EQ(sum.steps, kSteps);
  EXPECT_EQ(sum.wait_s, 0.125 * kSteps);
  ExpectEqual(published.Load(), TimesAfter(kSteps));
  StepTimes since = TimesAfter(5);
  since.Subtract(TimesAfter(3));
  ExpectEqual(since, TimesAfter(2));
}

}  // namespace
}  // namespace facet
