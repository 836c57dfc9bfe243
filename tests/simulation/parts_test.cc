// What the simulator is made of, each alone: a simulator that cannot fail shows nothing.

#include <gtest/gtest.h>

#include <vector>

#include "shard_worker/engine/step_plan.h"
#include "tests/simulation/plan_auditor.h"
#include "tests/simulation/stage.h"
#include "tests/simulation/wire.h"

namespace facet::sim {
namespace {

constexpr WireDelays kDelays{.least = 100, .most = 5000, .notice_most = 2000};

// Sends 0 .. `messages` - 1, one each `pace` us, and returns what arrived, then -1 for the end.
std::vector<int> Arrivals(Stage& stage, const std::shared_ptr<Wire>& wire, int messages,
                          TimeUs pace) {
  std::vector<int> arrived;
  for (int i = 0; i < messages; ++i) {
    stage.queue.At(stage.now() + i * pace, [&arrived, wire, i] {
      wire->Send(WireEnd::kNear, [&arrived, i] { arrived.push_back(i); });
    });
  }
  wire->OnLost(WireEnd::kFar, [&arrived] { arrived.push_back(-1); });
  while (stage.queue.RunNext(kNever)) {
  }
  return arrived;
}

TEST(EventQueue, RunsByTimeThenByOrderOfPosting) {
  EventQueue queue;
  std::vector<int> ran;
  queue.At(20, [&] { ran.push_back(3); });
  queue.At(10, [&] {
    ran.push_back(1);
    queue.At(20, [&] { ran.push_back(5); });
  });
  queue.At(20, [&] { ran.push_back(4); });
  queue.At(10, [&] { ran.push_back(2); });
  while (queue.RunNext(kNever)) {
  }
  EXPECT_EQ(ran, (std::vector<int>{1, 2, 3, 4, 5}));
  EXPECT_EQ(queue.now(), 20);
}

TEST(Alarm, RingsOnceAtTheLatestSetting) {
  EventQueue queue;
  std::vector<TimeUs> rang;
  Alarm alarm(&queue, [&] { rang.push_back(queue.now()); });
  alarm.Set(50);
  alarm.Set(20);
  alarm.Set(30);
  while (queue.RunNext(kNever)) {
  }
  EXPECT_EQ(rang, (std::vector<TimeUs>{30}));
  alarm.Set(60);
  alarm.Set(kNever);
  while (queue.RunNext(kNever)) {
  }
  EXPECT_EQ(rang.size(), 1);
}

TEST(Wire, KeepsTheOrderWhateverTheDelays) {
  Stage stage(false);
  const auto wire = std::make_shared<Wire>(&stage, 7, kDelays);
  stage.queue.At(1'000'000, [wire] { wire->Close(WireEnd::kNear); });
  const std::vector<int> arrived = Arrivals(stage, wire, 100, 10);
  ASSERT_EQ(arrived.size(), 101);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(arrived[static_cast<size_t>(i)], i);
  EXPECT_EQ(arrived.back(), -1);
}

TEST(Wire, LosesOnlyTheLastMessagesWhenItBreaks) {
  int lost = 0, whole = 0;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    Stage stage(false);
    const auto wire = std::make_shared<Wire>(&stage, seed, kDelays);
    stage.queue.At(5000, [wire] { wire->Break(); });
    const std::vector<int> arrived = Arrivals(stage, wire, 100, 100);
    ASSERT_FALSE(arrived.empty());
    for (size_t i = 0; i + 1 < arrived.size(); ++i) ASSERT_EQ(arrived[i], static_cast<int>(i));
    ASSERT_EQ(arrived.back(), -1);
    (arrived.size() < 101 ? lost : whole) += 1;
  }
  EXPECT_GT(lost, 0);
}

EngineOptions TwoPools() {
  EngineOptions options;
  options.block_tokens = 4;
  options.blocks = {8, 4};
  options.window = 4;
  options.vocabulary_size = 10;
  options.sequences_max = 2;
  return options;
}

StepPlan FirstStep() {
  StepPlan plan;
  plan.step = 1;
  plan.starts = {{.slot = SlotId{0}}, {.slot = SlotId{1}}};
  plan.segments = {{.slot = SlotId{0}, .tokens = {1, 2, 3}, .blocks = {{{0}, {0}}}},
                   {.slot = SlotId{1}, .tokens = {4, 5}, .blocks = {{{1}, {1}}}}};
  return plan;
}

TEST(PlanAuditor, PassesAProperPlan) {
  PlanAuditor auditor(TwoPools());
  EXPECT_TRUE(auditor.Take(FirstStep()).ok());
}

TEST(PlanAuditor, FindsTwoWritersOfABlock) {
  PlanAuditor auditor(TwoPools());
  StepPlan plan = FirstStep();
  plan.segments[1].blocks[0] = {0};
  EXPECT_FALSE(auditor.Take(plan).ok());
}

TEST(PlanAuditor, FindsAReaderOfABlockThatAnotherWrites) {
  PlanAuditor auditor(TwoPools());
  StepPlan plan = FirstStep();
  ASSERT_TRUE(auditor.Take(plan).ok());
  plan.step = 2;
  plan.starts.clear();
  plan.segments = {
      {.slot = SlotId{0}, .first_position = 3, .tokens = {1, 2}, .blocks = {{{0, 2}, {0, 2}}}},
      {.slot = SlotId{1}, .first_position = 2, .tokens = {3}, .blocks = {{{1}, {2}}}}};
  EXPECT_FALSE(auditor.Take(plan).ok());
}

TEST(PlanAuditor, FindsAMissingBlockAndAJump) {
  {
    PlanAuditor auditor(TwoPools());
    StepPlan plan = FirstStep();
    plan.segments[0].blocks[1] = {-1};
    EXPECT_FALSE(auditor.Take(plan).ok());
  }
  PlanAuditor auditor(TwoPools());
  StepPlan plan = FirstStep();
  plan.segments[0].first_position = 1;
  EXPECT_FALSE(auditor.Take(plan).ok());
}

}  // namespace
}  // namespace facet::sim
