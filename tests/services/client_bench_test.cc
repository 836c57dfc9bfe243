// The load generator against a scripted router.

#include "client/bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
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
  EXPECT_THAT(samples.itl, SizeIs(21));
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

TEST_F(ClientBench, CutsOffWhatRunsWhenTheTimeIsUp) {
  int calls = 0;
  std::mutex mutex;
  router_.SetScript(
      [&](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        {
          std::lock_guard lock(mutex);
          if (++calls == 1) return FourTokens()(context, request, writer);
        }
        writer.Write(Message({MakeDelta(0, 0, 0, {1}, "a")}));
        while (!context.IsCancelled()) std::this_thread::yield();
        return grpc::Status::CANCELLED;
      });
  BenchOptions options = SmallBench();
  options.requests = 0;
  options.duration = std::chrono::milliseconds(300);
  const auto report = MeasureBench(Connect(), options, err_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->samples.completed, 0);
  EXPECT_EQ(report->samples.cut_off, 3);
  EXPECT_THAT(report->samples.errors, IsEmpty());
  EXPECT_EQ(report->samples.output_tokens, 3);
  EXPECT_GE(report->wall_s, 0.3);
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
