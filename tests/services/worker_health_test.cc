// Health that does not lie: canaries, frozen steps, and the pulse of the engine thread.

#include <atomic>
#include <string>
#include <thread>

#include "tests/services/worker_fixture.h"

namespace facet::testing {
namespace {

class WorkerHealth : public WorkerService {
 protected:
  WorkerHealth() {
    rank_.lies = &lies_;
    options_.canary.enabled = true;
    options_.canary.quiet = 10'000;
    options_.canary.rest_factor = 0;
    options_.beat.period = 10'000;
  }
  ~WorkerHealth() override {  // an idle group's canaries look at lies_ until it has ended
    gate_.Open();
    Stop().IgnoreError();
  }
  void AwaitMetric(const std::string& line) {
    while (MetricsText().find(line) == std::string::npos) std::this_thread::yield();
  }

  std::atomic<bool> lies_ = false;
};

TEST_F(WorkerHealth, CanaryComesBeforeServing) {
  gate_.Allow(1);  // a canary has two steps
  StartLeader();
  AwaitMetric("facet_worker_step_rows_count 1");
  EXPECT_EQ(HealthOf(address(), ""), kNotServing);
  gate_.Open();
  AwaitUp();
  Router router(address());
  const v1::LeaderState state = router.First();
  EXPECT_EQ(state.output_tokens_done(), 0) << "canaries are nobody's tokens";
  EXPECT_EQ(state.prompt_tokens_done(), 0);
}

TEST_F(WorkerHealth, IdleGroupGoesOnProvingItself) {
  StartAlone();
  AwaitMetric("facet_worker_canaries_total{result=\"right\"} 5");
  EXPECT_EQ(HealthOf(address(), ""), kServing);
  EXPECT_TRUE(Stop().ok());
}

TEST_F(WorkerHealth, WrongCanaryEndsTheProcess) {
  StartAlone();
  Router router(address());
  router.First();
  lies_ = true;
  const grpc::Status session = router.AwaitEnd();
  EXPECT_EQ(session.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(session.error_message(), HasSubstr("the canary's answer has changed"));
  const absl::Status served = AwaitServed();
  EXPECT_THAT(MessageOf(served), HasSubstr("computes wrong tokens"));
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_canaries_total{result=\"wrong\"} 1\n"));
}

TEST_F(WorkerHealth, FirstAnswerIsTheMeasureOfLaterEpochsToo) {
  options_.canary.quiet = 3'600'000'000;  // the steps after the first canary are the request's
  rank_.breaks_at = 5;
  StartAlone();
  Router router(address());
  router.First();
  lies_ = true;
  router.Send({Submit(1, 5, 900)});
  EXPECT_THAT(router.AwaitEnd().error_message(), HasSubstr("broke"));
  EXPECT_THAT(MessageOf(AwaitServed()), HasSubstr("the canary's answer has changed"));
}

TEST_F(WorkerHealth, FrozenStepEndsReadinessUntilItMoves) {
  StartAlone();
  gate_.Allow(0);
  AwaitHealth(kNotServing);
  gate_.Open();
  AwaitUp();
}

TEST_F(WorkerHealth, EngineThreadBeatsWhileItWaits) {
  constexpr milliseconds kSilent(1000);  // four times as long as it may wait
  options_.canary.enabled = false;
  StartAlone();
  // A thread that waits without a beat is silent in every such second; a machine that stands still
  // for a while is not.
  milliseconds oldest{0};
  for (int seconds = 0; seconds < 20 && (oldest == milliseconds(0) || oldest >= kSilent);
       ++seconds) {
    oldest = milliseconds(0);
    for (const TimeUs start = SteadyNow(); SteadyNow() < start + 1'000'000;) {
      oldest = std::max(oldest, pulse_.Age());
      std::this_thread::yield();
    }
  }
  EXPECT_GT(oldest, milliseconds(0));
  EXPECT_LT(oldest, kSilent);
}

TEST(Pulse, RestsAndAges) {
  Pulse pulse;
  EXPECT_EQ(pulse.Age(), milliseconds(0)) << "before the first beat";
  pulse.Beat();
  while (pulse.Age() < milliseconds(2)) std::this_thread::yield();
  pulse.Rest();
  EXPECT_EQ(pulse.Age(), milliseconds(0));
}

}  // namespace
}  // namespace facet::testing
