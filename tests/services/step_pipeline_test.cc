// What the step thread asks an executor for, in which order.

#include "shard_worker/service/step_pipeline.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <vector>

#include "absl/synchronization/notification.h"
#include "base/status.h"

namespace facet {
namespace {

StepPlan Plan(uint64_t step) {
  StepPlan plan;
  plan.step = step;
  plan.segments.emplace_back().tokens = {1, 2};
  return plan;
}

// Writes down what it is asked for. Lets two steps be under way, but for those of `alone`.
class ScriptedExecutor : public Executor {
 public:
  absl::StatusOr<StepResult> Run(const StepPlan& plan) override {
    log += "run " + std::to_string(plan.step) + "; ";
    StepResult result;
    result.step = plan.step;
    return result;
  }
  bool MayBegin(const StepPlan& plan) const override {
    return plan.step != alone && under_way_.size() < 2;
  }
  absl::Status Begin(const StepPlan& plan) override {
    log += "begin " + std::to_string(plan.step) + "; ";
    if (plan.step == fails_to_begin) return Internal("no");
    under_way_.push_back(plan.step);
    return absl::OkStatus();
  }
  absl::StatusOr<StepResult> End() override {
    StepResult result;
    result.step = under_way_.front();
    under_way_.erase(under_way_.begin());
    log += "end " + std::to_string(result.step) + "; ";
    if (result.step == fails_to_end) return Internal("broken");
    return result;
  }

  uint64_t alone = 0, fails_to_begin = 0, fails_to_end = 0;
  std::string log;  // the step thread's until the pipeline has stopped

 private:
  std::vector<uint64_t> under_way_;
};

struct Seen {
  std::vector<StepDone> done;
  std::string log;
};

// Plans 1 and 2 are there at first, each step that is done brings another, up to `last`.
Seen RunPlans(ScriptedExecutor* executor, uint64_t last) {
  Seen seen;
  absl::Notification over;
  StepPipeline* running = nullptr;
  absl::Notification ready;
  uint64_t next = 3;
  StepPipeline pipeline(executor, [&](StepDone done) {
    ready.WaitForNotification();
    const bool ok = done.result.ok();
    seen.done.push_back(std::move(done));
    if (ok && next <= last) running->Push(Plan(next++));
    if (!ok || seen.done.size() == last) over.Notify();
  });
  running = &pipeline;
  pipeline.Push(Plan(1));
  pipeline.Push(Plan(2));
  ready.Notify();
  over.WaitForNotification();
  pipeline.Stop();
  seen.log = executor->log;
  return seen;
}

// The first may be ended before the second has come.
bool IsOneOf(const std::string& log, const std::string& a, const std::string& b) {
  return log == a || log == b;
}

TEST(StepPipeline, BeginsTheNextStepBeforeItEndsTheOldest) {
  ScriptedExecutor executor;
  const Seen seen = RunPlans(&executor, 4);
  ASSERT_EQ(seen.done.size(), 4u);
  for (uint64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(seen.done[i].result->step, i + 1);
    EXPECT_EQ(seen.done[i].rows, 2);
    EXPECT_GE(seen.done[i].seconds, 0);
  }
  EXPECT_TRUE(IsOneOf(seen.log, "begin 1; begin 2; end 1; begin 3; end 2; begin 4; end 3; end 4; ",
                      "begin 1; end 1; begin 2; begin 3; end 2; begin 4; end 3; end 4; "))
      << seen.log;
}

TEST(StepPipeline, EndsAllBeforeItRunsOneThatMayNotBegin) {
  ScriptedExecutor executor;
  executor.alone = 3;
  const Seen seen = RunPlans(&executor, 5);
  ASSERT_EQ(seen.done.size(), 5u);
  const std::string rest = "run 3; begin 4; begin 5; end 4; end 5; ";
  EXPECT_TRUE(IsOneOf(seen.log, "begin 1; begin 2; end 1; end 2; " + rest,
                      "begin 1; end 1; begin 2; end 2; " + rest))
      << seen.log;
}

TEST(StepPipeline, TellsAFailureAfterTheStepsBeforeIt) {
  ScriptedExecutor executor;
  executor.fails_to_begin = 3;
  const Seen seen = RunPlans(&executor, 9);
  ASSERT_EQ(seen.done.size(), 3u);
  EXPECT_TRUE(seen.done[1].result.ok());
  EXPECT_FALSE(seen.done[2].result.ok());
  EXPECT_TRUE(seen.log.ends_with("begin 3; end 2; ")) << seen.log;
}

TEST(StepPipeline, AfterAFailureNothingIsAskedFor) {
  ScriptedExecutor executor;
  executor.fails_to_end = 2;
  const Seen seen = RunPlans(&executor, 9);
  ASSERT_EQ(seen.done.size(), 2u);
  EXPECT_FALSE(seen.done[1].result.ok());
  EXPECT_TRUE(seen.log.ends_with("begin 3; end 2; ")) << seen.log;
}

// Who stops in `on_done`'s time leaves a step under way.
TEST(StepPipeline, StopsWithAStepUnderWay) {
  ScriptedExecutor executor;
  absl::Notification reached, go_on;
  std::atomic<int> done = 0;
  StepPipeline pipeline(&executor, [&](StepDone) {
    if (++done > 1) return;
    reached.Notify();
    go_on.WaitForNotification();
  });
  pipeline.Push(Plan(1));
  pipeline.Push(Plan(2));
  reached.WaitForNotification();
  std::thread stopper([&] { pipeline.Stop(); });
  go_on.Notify();
  stopper.join();
  EXPECT_LE(done, 2);
}

}  // namespace
}  // namespace facet
