// Requests that begin alike compute their beginning once and answer as if each had computed it.
//
// FACET_PREFIX_REQUESTS is how many (64: the whole form, with a prefix of 2,000 tokens).

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "base/status.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/http.h"
#include "tests/cluster/launched_cluster.h"
#include "tests/cluster/traffic.h"

namespace facet::testing {
namespace {

constexpr int kOwnTokens = 64;
constexpr int kOutputTokens = 8;

class Prefix : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* text = std::getenv("FACET_PREFIX_REQUESTS");
    if (text != nullptr) requests_ = std::atoi(text);
    shared_tokens_ = requests_ >= 64 ? 2000 : 1000;
    LaunchOptions options;
    options.model = ModelPath(kGemmaFile);
    options.replicas = 1;
    options.routers = 1;
    options.worker_flags = {"--kv_tokens=32768"};
    auto cluster = LaunchedCluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
  }

  v1::GenerateRequest Request(uint64_t prefix, int number) const {
    return DrawnRequest(shared_tokens_, prefix, kOwnTokens, static_cast<uint64_t>(number) + 1,
                        kOutputTokens);
  }

  Connection Connect(const std::string& tenant) const {
    return Connection({.endpoints = cluster_->endpoints(), .tenant = tenant});
  }

  // Rows that steps computed, less the sampled ones and wrong guesses of these: prompt tokens,
  // however the worker counts them.
  double PrefilledTokens() {
    const auto metric = [this](const char* name) { return cluster_->Metric("worker-0-0", name); };
    const double wrong =
        metric("facet_worker_proposed_tokens_total") - metric("facet_worker_accepted_tokens_total");
    return metric("facet_worker_step_rows_sum") - metric("facet_worker_output_tokens_total") -
           wrong;
  }

  // The answers of requests that share nothing: each has its tenant, and so its salt.
  void AnswerApart(uint64_t prefix) {
    const double before = PrefilledTokens();
    for (int i = 0; i < requests_; ++i) {
      const Exchange exchange =
          Serve(Connect(fmt::format("tenant-{}-{}", prefix, i)), Request(prefix, i));
      ASSERT_TRUE(exchange.status.ok()) << exchange.status;
      EXPECT_EQ(exchange.cached_tokens, 0);
      apart_.push_back(exchange.tokens);
    }
    apart_tokens_ = PrefilledTokens() - before;
  }

  void ExpectTheSameForLess(const std::vector<Exchange>& together, double tokens, const char* how) {
    fmt::print("{}: {:.0f} prompt tokens computed instead of {:.0f}, {:.1f} % less (target 90)\n",
               how, tokens, apart_tokens_, 100 * (1 - tokens / apart_tokens_));
    for (size_t i = 0; i < together.size(); ++i) {
      ASSERT_TRUE(together[i].status.ok()) << together[i].status;
      EXPECT_EQ(together[i].tokens, apart_[i]) << "request " << i;
    }
    // The prefix once and each one's own, and the cut-off parts of blocks.
    const double least = shared_tokens_ + requests_ * kOwnTokens;
    EXPECT_LE(tokens, least + requests_ * 32 + shared_tokens_ / 4.0);
  }

  int requests_ = 12;
  int shared_tokens_ = 0;
  std::unique_ptr<LaunchedCluster> cluster_;
  std::vector<std::vector<int32_t>> apart_;
  double apart_tokens_ = 0;
};

TEST_F(Prefix, IsComputedOnceByTheFirstOfMany) {
  ASSERT_NO_FATAL_FAILURE(AnswerApart(1));
  std::vector<v1::GenerateRequest> rest;
  for (int i = 1; i < requests_; ++i) rest.push_back(Request(1, i));
  const Connection connection = Connect("all");
  const double before = PrefilledTokens();
  std::vector<Exchange> together = {Serve(connection, Request(1, 0))};
  for (Exchange& exchange : RunAtOnce(connection, rest)) together.push_back(std::move(exchange));
  ExpectTheSameForLess(together, PrefilledTokens() - before, "after the first");
}

TEST_F(Prefix, IsComputedOnceByManyAtOnce) {
  ASSERT_NO_FATAL_FAILURE(AnswerApart(1));
  std::vector<v1::GenerateRequest> all;
  for (int i = 0; i < requests_; ++i) all.push_back(Request(1, i));
  const Connection connection = Connect("all");
  const double before = PrefilledTokens();
  const std::vector<Exchange> together = RunAtOnce(connection, all);
  ExpectTheSameForLess(together, PrefilledTokens() - before, "all at once");
}

}  // namespace
}  // namespace facet::testing
