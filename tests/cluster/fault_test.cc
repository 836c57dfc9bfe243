// Promise 2 on real processes: ranks are killed and stopped, routers are killed, and every client
// gets precisely the answer of the undisturbed cluster.
//
// FACET_FAULT_SECONDS lengthens it (600: the whole form), FACET_FAULT_SEED chooses other victims.

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "tests/cluster/answers.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/fault_injector.h"
#include "tests/cluster/fault_report.h"
#include "tests/cluster/group_watch.h"
#include "tests/cluster/launched_cluster.h"
#include "tests/cluster/mixed_load.h"

namespace facet::testing {
namespace {

using ::testing::IsEmpty;

constexpr int kStreams = 10;  // 13 sequences or so: both groups hold more than four
constexpr int kAnswerTokens = 160;

int FromEnvironment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

std::string Describe(const Fault& fault, GroupWatch::Time start) {
  std::string text = fmt::format(
      "{:7.2f} s: {} {}", std::chrono::duration<double>(fault.at - start).count(), fault.victim,
      fault.kind == FaultKind::kRankStopped ? "stopped" : "killed");
  if (fault.kind != FaultKind::kRouterKilled) {
    text += fmt::format(", {} sequences in its group{}", fault.running,
                        fault.others_ready ? "" : ", no other group up");
  }
  return text + "\n";
}

TEST(Faults, CostAPauseAndNeverAToken) {
  LaunchOptions options;
  options.model = ModelPath(kGemmaFile);
  options.worker_flags = {"--kv_tokens=16384"};
  auto cluster = LaunchedCluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const Connection connection({.endpoints = (*cluster)->endpoints()});
  auto recorded = RecordMixedRequests(connection, kAnswerTokens);
  ASSERT_TRUE(recorded.ok()) << recorded.status();

  FaultPlan plan;
  plan.duration = std::chrono::seconds(FromEnvironment("FACET_FAULT_SECONDS", 30));
  plan.seed = static_cast<uint64_t>(FromEnvironment("FACET_FAULT_SEED", 1));
  GroupWatch groups(connection, options.replicas);
  const auto start = TestClock::now();
  MixedLoad load(connection, *recorded, kStreams);
  const std::vector<Fault> faults = InjectFaults(plan, **cluster, groups);
  const LoadResults results = load.Finish();

  int restarts = 0;
  for (const ServerState& server : (*cluster)->Servers()) restarts += server.starts - 1;
  for (const Fault& fault : faults) fmt::print("{}", Describe(fault, start));
  fmt::print("{} faults, {} processes started again\n", faults.size(), restarts);
  fmt::print("{} requests, {} choices, {} tokens, {} streams resumed; lost {}, wrong {}\n{}",
             results.requests, results.choices, results.tokens, results.resumptions,
             results.lost.size(), results.wrong.size(), DescribeFaults(faults, results, groups));
  EXPECT_THAT(results.lost, IsEmpty());
  EXPECT_THAT(results.wrong, IsEmpty());
  EXPECT_EQ(results.by_kind.size(), recorded->size()) << "not every kind was asked";
  EXPECT_GE(std::ssize(faults), plan.duration / plan.rank_period);
  const absl::Status stopped = (*cluster)->Stop();
  EXPECT_TRUE(stopped.ok()) << stopped;
}

}  // namespace
}  // namespace facet::testing
