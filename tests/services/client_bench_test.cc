// The load generator against a scripted router.

#include "client/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "client/arrivals.h"
#include "client/percentiles.h"
#include "tests/services/client_fixture.h"

namespace facet::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

class ClientBench : public ClientTest {};

BenchOptions SmallBench() {
  BenchOptions options;
  options.streams = 3;
  options.requests = 7;
  options.prompt_tokens = 20;
  options.max_tokens = 4;
  return options;
}

GenerateScript FourTokens() {
  return [](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer) {
    writer.Write(Message({MakeDelta(0, 0, 0, {1}, "a")}));
    writer.Write(Message({Finished(MakeDelta(0, 0, 1, {2, 3, 4}, "bcd"))}));
    return grpc::Status::OK;
  };
}

TEST_F(ClientBench, CountsWhatItReceived) {
  router_.SetScript(FourTokens());
  const auto report = MeasureBench(Connect(), SmallBench(), err_);
  ASSERT_TRUE(report.ok()) << report.status();
  const BenchSamples& samples = report->samples;
  EXPECT_EQ(samples.completed, 7);
  EXPECT_EQ(samples.cut_off, 0);
  EXPECT_EQ(samples.output_tokens, 28);
  EXPECT_EQ(samples.prompt_tokens, 140);
  EXPECT_THAT(samples.errors, IsEmpty());
  EXPECT_THAT(samples.ttft, SizeIs(7));
  EXPECT_THAT(samples.tpot, SizeIs(7));
  EXPECT_THAT(samples.itl, SizeIs(7));  // of messages
  EXPECT_GT(report->wall_s, 0);
  for (size_t i = 0; i < samples.tpot.size(); ++i) EXPECT_GT(samples.tpot[i], 0);
}

TEST_F(ClientBench, AsksForDifferentPromptsTheSameEveryTime) {
  router_.SetScript(FourTokens());
  ASSERT_TRUE(MeasureBench(Connect(), SmallBench(), err_).ok());
  const auto prompts = [](const std::vector<v1::GenerateRequest>& requests) {
    std::set<std::vector<int>> all;
    for (const v1::GenerateRequest& request : requests) {
      const auto& ids = request.prompts(0).tokens().ids();
      EXPECT_EQ(ids.size(), 20);
      for (const int id : ids) EXPECT_TRUE(id >= 500 && id < 1000) << id;
      EXPECT_TRUE(request.ignore_eos());
      EXPECT_EQ(request.max_tokens(), 4);
      all.emplace(ids.begin(), ids.end());
    }
    return all;
  };
  const auto first = prompts(router_.requests());
  EXPECT_THAT(first, SizeIs(8)) << "seven, and one to warm up";
  ASSERT_TRUE(MeasureBench(Connect(), SmallBench(), err_).ok());
  EXPECT_EQ(prompts(router_.requests()), first);
  BenchOptions other = SmallBench();
  other.seed = 2;
  ASSERT_TRUE(MeasureBench(Connect(), other, err_).ok());
  EXPECT_THAT(prompts(router_.requests()), SizeIs(16));
}

TEST_F(ClientBench, TellsErrorsApart) {
  std::mutex mutex;
  int calls = 0;
  router_.SetScript(
      [&](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        std::lock_guard lock(mutex);
        if (++calls % 2 == 0) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
        return FourTokens()(context, request, writer);
      });
  const absl::Status status = RunBench(Connect(), SmallBench(), out_, err_);
  EXPECT_EQ(status, Internal("4 requests failed"));
  EXPECT_THAT(out_.str(),
              AllOf(HasSubstr("3 requests done"), HasSubstr("4 x RESOURCE_EXHAUSTED: full\n")));
}

TEST_F(ClientBench, EndsWhenTheFirstRequestFails) {
  router_.SetScript([](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "prompts[0]: too long");
  });
  EXPECT_EQ(RunBench(Connect(), SmallBench(), out_, err_),
            InvalidArgument("the first request failed: prompts[0]: too long"));
  BenchOptions unknown = SmallBench();
  unknown.model = "huge";
  EXPECT_EQ(RunBench(Connect(), unknown, out_, err_), NotFound("model 'huge' is not served"));
}

// The first request is answered; those after it get one token and no end.
absl::StatusOr<BenchReport> BenchOfEndlessAnswers(const BenchOptions& options, std::ostream& err) {
  FakeRouter router;
  std::atomic<int> calls = 0;
  router.SetScript(
      [&](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        if (++calls == 1) return FourTokens()(context, request, writer);
        writer.Write(Message({MakeDelta(0, 0, 0, {1}, "a")}));
        while (!context.IsCancelled()) std::this_thread::yield();
        return grpc::Status::CANCELLED;
      });
  return MeasureBench(ConnectTo({.endpoints = {router.address()}}), options, err);
}

TEST_F(ClientBench, CutsOffWhatRunsWhenTheTimeIsUp) {
  BenchOptions options = SmallBench();
  options.requests = 0;
  std::chrono::milliseconds duration(250);
  absl::StatusOr<BenchReport> report;
  do {  // until the time is enough for three streams to begin
    duration *= 2;
    options.duration = duration;
    report = BenchOfEndlessAnswers(options, err_);
    ASSERT_TRUE(report.ok()) << report.status();
  } while (report->samples.output_tokens < 3 && duration < kLong);
  EXPECT_EQ(report->samples.completed, 0);
  EXPECT_EQ(report->samples.cut_off, 3);
  EXPECT_THAT(report->samples.errors, IsEmpty());
  EXPECT_EQ(report->samples.output_tokens, 3);
  EXPECT_GE(report->wall_s, std::chrono::duration<double>(duration).count());
}

TEST_F(ClientBench, JsonReadsBack) {
  router_.SetScript(FourTokens());
  BenchOptions options = SmallBench();
  options.json = true;
  EXPECT_TRUE(RunBench(Connect(), options, out_, err_).ok());
  EXPECT_THAT(out_.str(),
              AllOf(StartsWith(R"({"streams":3,"prompt_tokens_per_request":20,"max_tokens":4,)"),
                    HasSubstr(R"("output_tokens":28)"), HasSubstr(R"("errors":{}})")));
}

TEST_F(ClientBench, AnOpenLoopSendsAtItsArrivals) {
  router_.SetScript(FourTokens());
  BenchOptions options = SmallBench();
  options.rate = 200;
  const auto report = MeasureBench(Connect(), options, err_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->samples.completed, 7);
  Arrivals arrivals(options.rate, options.seed);
  double last = 0;
  for (int i = 0; i < 7; ++i) last = arrivals.Next();
  EXPECT_GE(report->wall_s, last);
}

// One stream, and requests that each take longer than the time between arrivals: the second counts
// from its arrival, not from when the stream was free.
TEST_F(ClientBench, WaitingForAStreamCountsIntoTheLatency) {
  std::mutex mutex;
  std::vector<std::chrono::steady_clock::time_point> answered;
  router_.SetScript([&](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer) {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    {
      std::lock_guard lock(mutex);
      answered.push_back(std::chrono::steady_clock::now());
    }
    writer.Write(Message({Finished(MakeDelta(0, 0, 0, {1, 2, 3, 4}, "abcd"))}));
    return grpc::Status::OK;
  });
  BenchOptions options = SmallBench();
  options.streams = 1;
  options.requests = 4;
  options.rate = 1000;
  const auto report = MeasureBench(Connect(), options, err_);
  ASSERT_TRUE(report.ok()) << report.status();
  const std::vector<double>& ttft = report->samples.ttft;
  ASSERT_THAT(ttft, SizeIs(4));
  const std::chrono::duration<double> between = answered[4] - answered[2];  // [0] warms up
  EXPECT_GE(ttft[3], between.count());
  EXPECT_GE(report->samples.late, 1);
}

TEST_F(ClientBench, ATimeLimitEndsTheArrivals) {
  router_.SetScript(FourTokens());
  BenchOptions options = SmallBench();
  options.requests = 0;
  options.rate = 0.01;  // the second one would take minutes
  options.duration = std::chrono::milliseconds(100);
  const auto report = MeasureBench(Connect(), options, err_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_LT(report->samples.completed, 2);
  EXPECT_THAT(report->samples.errors, IsEmpty());
}

v1::GetStatusResponse Profiled(int64_t steps) {
  v1::GetStatusResponse response;
  v1::GroupStatus& group = *response.add_groups();
  group.set_ranks(2);
  v1::StepProfile& profile = *group.mutable_profile();
  profile.set_steps(steps);
  profile.set_rows(8 * steps);
  profile.set_seconds(0.010 * static_cast<double>(steps));
  const auto add = [&](const char* name, double seconds, double bytes, double operations) {
    v1::OperationTotals& operation = *profile.add_operations();
    operation.set_name(name);
    operation.set_calls(steps);
    operation.set_seconds(seconds * static_cast<double>(steps));
    operation.set_bytes(bytes * static_cast<double>(steps));
    operation.set_operations(operations * static_cast<double>(steps));
  };
  add("head", 0.006, 60e6, 6e9);
  add("attention", 0.003, 1e6, 3e8);
  add("wait", 0.001, 0, 0);
  return response;
}

TEST_F(ClientBench, AProfileShowsWhatCameDuringTheLoad) {
  router_.SetScript(FourTokens());
  router_.SetStatus({Profiled(5), Profiled(105)});
  BenchOptions options = SmallBench();
  options.profile = true;
  options.limits = MachineLimits{40, 2000, 400};
  ASSERT_TRUE(RunBench(Connect(), options, out_, err_).ok());
  EXPECT_THAT(router_.profiles(), ::testing::ElementsAre(::testing::Gt(0), 0));
  // Two ranks like the leader read 2 x 10 of 40 GB/s and compute 2 x 100 of 400 GFLOP/s.
  EXPECT_THAT(
      out_.str(),
      AllOf(HasSubstr("100 steps of 8.0 tokens, 10.000 ms each, on the leader of 2 ranks"),
            ::testing::ContainsRegex("head +1 +6.000 +60.0 % +10.0 +1000 +100 % +int8"),
            ::testing::ContainsRegex("attention +1 +3.000 +30.0 % +0.3 +100 +50 % +float32"),
            ::testing::ContainsRegex("wait +1 +1.000 +10.0 % +- +- +- +-")));
}

TEST_F(ClientBench, AProfileWithoutStepsIsAnError) {
  router_.SetScript(FourTokens());
  BenchOptions options = SmallBench();
  options.profile = true;
  router_.SetStatus({Profiled(5), Profiled(5)});
  EXPECT_TRUE(absl::IsFailedPrecondition(RunBench(Connect(), options, out_, err_)));
  EXPECT_THAT(router_.profiles(), SizeIs(2)) << "switched off again";
  EXPECT_THAT(MessageOf(MeasureBench(Connect(), options, err_).status()), HasSubstr("no step"));
}

TEST_F(ClientBench, AProfileAcrossEpochsIsAnError) {
  router_.SetScript(FourTokens());
  router_.SetStatus({Profiled(5), Profiled(3)});
  BenchOptions options = SmallBench();
  options.profile = true;
  EXPECT_THAT(MessageOf(MeasureBench(Connect(), options, err_).status()), HasSubstr("anew"));
}

TEST(Arrivals, AreAPoissonProcessThatRepeats) {
  Arrivals arrivals(4, 1), again(4, 1), other(4, 2), twice(8, 1);
  constexpr int kCount = 20000;
  double last = 0, squares = 0;
  for (int i = 0; i < kCount; ++i) {
    const double time = arrivals.Next();
    ASSERT_GT(time, last);
    squares += (time - last) * (time - last);
    last = time;
    EXPECT_EQ(again.Next(), time);
    EXPECT_NEAR(twice.Next(), time / 2, 1e-9 * time);
    EXPECT_NE(other.Next(), time);
  }
  EXPECT_NEAR(last / kCount, 0.25, 0.25 * 0.03) << "mean of the gaps";
  EXPECT_NEAR(squares / kCount, 2 * 0.25 * 0.25, 2 * 0.25 * 0.25 * 0.06)
      << "an exponential's second moment is twice its mean squared";
}

// The same load is given to other servers by tests/bench/facet_bench/load.py.
TEST(Arrivals, AreThoseOfTheBenchmarkTool) {
  Arrivals arrivals(2.5, 1);
  for (const double expected :
       {0.183666318536677, 1.165134003741717, 1.700439420960861, 1.999664966674485})
    EXPECT_NEAR(arrivals.Next(), expected, 1e-12);
}

TEST(Percentiles, AreTheNearestRank) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  const Percentiles hundred = PercentilesOf(samples);
  EXPECT_EQ(hundred.p50, 50);
  EXPECT_EQ(hundred.p90, 90);
  EXPECT_EQ(hundred.p99, 99);
  EXPECT_EQ(PercentilesOf({4.0}).p50, 4.0);
  EXPECT_EQ(PercentilesOf({4.0, 9.0}).p50, 4.0);
  EXPECT_EQ(PercentilesOf({4.0, 9.0}).p90, 9.0);
  EXPECT_EQ(PercentilesOf({}).p99, 0.0);
}

}  // namespace
}  // namespace facet::testing
