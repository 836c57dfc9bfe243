// Where ranks compute, on machines that hwloc makes up.

#include "shard_worker/runtime/placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <numeric>
#include <set>
#include <thread>

#include "base/thread_pool.h"
#include "shard_worker/runtime/host_topology.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using Processors = std::vector<std::vector<int>>;

constexpr char kTwoSockets[] = "package:2 [numa] core:8 pu:2";  // processors 2i, 2i + 1 are a core

// Of a made-up machine; `allowed` empty: all of it.
std::vector<HostCore> CoresOf(const std::string& machine, std::vector<int> allowed = {}) {
  const absl::StatusOr<HostTopology> host = HostTopology::Synthetic(machine);
  EXPECT_TRUE(host.ok()) << host.status();
  if (allowed.empty()) allowed = host->AllowedProcessors();
  return host->Cores(allowed);
}

PlacementPlan Plan(const std::vector<HostCore>& cores, Pinning pinning, HostShare share,
                   int threads) {
  absl::StatusOr<PlacementPlan> plan = PlanPlacement(cores, {pinning, share}, threads);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

std::vector<int> Range(int first, int count) {
  std::vector<int> numbers(static_cast<size_t>(count));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

TEST(HostTopologyTest, SeesCoresAndNodesAsFarAsTheyMayBeUsed) {
  const std::vector<HostCore> all = CoresOf(kTwoSockets);
  ASSERT_EQ(all.size(), 16u);
  EXPECT_THAT(all[9].processors, ElementsAre(18, 19));
  EXPECT_EQ(all[9].node, 1);
  const std::vector<HostCore> some = CoresOf(kTwoSockets, {1, 6, 7, 31});
  ASSERT_EQ(some.size(), 3u);
  EXPECT_THAT(some[0].processors, ElementsAre(1));
  EXPECT_THAT(some[1].processors, ElementsAre(6, 7));
  EXPECT_THAT(some[2].processors, ElementsAre(31));
  EXPECT_EQ(some[2].node, 1);
}

TEST(HostTopologyTest, RefusesADescriptionThatIsNone) {
  EXPECT_FALSE(HostTopology::Synthetic("sixteen cores").ok());
}

TEST(PlacementTest, RanksTakeTurnsAtNodesAndEachStaysOnOne) {
  const std::vector<HostCore> cores = CoresOf(kTwoSockets);
  const auto plan = [&](int index) { return Plan(cores, Pinning::kCores, {index, 4}, 3); };
  EXPECT_EQ(plan(0).processors, (Processors{{0}, {2}, {4}}));
  EXPECT_EQ(plan(1).processors, (Processors{{16}, {18}, {20}}));
  EXPECT_EQ(plan(2).processors, (Processors{{6}, {8}, {10}}));
  EXPECT_EQ(plan(3).processors, (Processors{{22}, {24}, {26}}));
  EXPECT_EQ(plan(2).node, 0);
  EXPECT_EQ(plan(3).node, 1);
  EXPECT_EQ(plan(3).node_processors, Range(16, 16));
}

TEST(PlacementTest, NoTwoThreadsOfTheHostShareAProcessor) {
  for (const char* machine :
       {kTwoSockets, "core:6 pu:2", "[numa] core:1 pu:1", "numa:4 core:3 pu:1"}) {
    const std::vector<HostCore> cores = CoresOf(machine);
    int processors = 0;
    for (const HostCore& core : cores) processors += static_cast<int>(core.processors.size());
    for (int ranks = 1; ranks <= processors; ++ranks) {
      const int threads = processors / ranks;
      std::set<int> taken;
      for (int index = 0; index < ranks; ++index) {
        for (const auto& own : Plan(cores, Pinning::kCores, {index, ranks}, threads).processors) {
          ASSERT_EQ(own.size(), 1u);
          EXPECT_TRUE(taken.insert(own.front()).second) << machine << ", " << ranks << " ranks";
        }
      }
    }
  }
}

TEST(PlacementTest, SecondThreadsOfCoresAreTakenLast) {
  const std::vector<HostCore> cores = CoresOf("package:1 core:4 pu:2");
  EXPECT_EQ(Plan(cores, Pinning::kCores, {0, 2}, 3).processors, (Processors{{0}, {2}, {4}}));
  EXPECT_EQ(Plan(cores, Pinning::kCores, {1, 2}, 3).processors, (Processors{{6}, {1}, {3}}));
}

TEST(PlacementTest, ARankThatNoNodeHoldsSpansThem) {
  const PlacementPlan plan = Plan(CoresOf("numa:2 core:4 pu:1"), Pinning::kCores, {0, 1}, 6);
  EXPECT_EQ(plan.processors, (Processors{{0}, {1}, {2}, {3}, {4}, {5}}));
  EXPECT_EQ(plan.node, -1);
  EXPECT_THAT(plan.node_processors, IsEmpty());
}

TEST(PlacementTest, OnlyAllowedProcessorsAreUsed) {
  const std::vector<HostCore> cores = CoresOf(kTwoSockets, {3, 5, 20, 21, 22});
  EXPECT_EQ(Plan(cores, Pinning::kCores, {0, 2}, 2).processors, (Processors{{20}, {22}}));
  EXPECT_EQ(Plan(cores, Pinning::kCores, {1, 2}, 2).processors, (Processors{{3}, {5}}));
}

TEST(PlacementTest, AutoPinsWhereTheRanksTakeMostOfTheCores) {
  const std::vector<HostCore> cores = CoresOf("core:8 pu:2");
  for (const int threads : {3, 4}) {
    EXPECT_EQ(Plan(cores, Pinning::kAuto, {1, 2}, threads).pinning, Pinning::kCores);
  }
  EXPECT_EQ(Plan(cores, Pinning::kAuto, {1, 2}, 3).why,
            "threads are pinned to processors 6, 8, 10: 2 ranks of 3 threads take most of 8 cores");
  for (const int threads : {2, 5, 100}) {
    const PlacementPlan plan = Plan(cores, Pinning::kAuto, {1, 2}, threads);
    EXPECT_EQ(plan.pinning, Pinning::kOff);
    EXPECT_THAT(plan.processors, IsEmpty());
  }
  EXPECT_EQ(Plan(cores, Pinning::kAuto, {1, 2}, 2).why,
            "threads are not pinned: 2 ranks of 2 threads leave room on 8 cores");
  EXPECT_EQ(Plan(cores, Pinning::kAuto, {1, 2}, 5).why,
            "threads are not pinned: 2 ranks of 5 threads share 8 cores");
}

TEST(PlacementTest, AutoKeepsRanksOnNodesWhereItDoesNotPinThem) {
  const std::vector<HostCore> cores = CoresOf(kTwoSockets);
  const PlacementPlan roomy = Plan(cores, Pinning::kAuto, {1, 2}, 4);
  EXPECT_EQ(roomy.pinning, Pinning::kNode);
  EXPECT_EQ(roomy.node, 1);
  EXPECT_EQ(roomy.processors, Processors(4, Range(16, 16)));
  EXPECT_EQ(roomy.why, "threads stay on NUMA node 1: 2 ranks of 4 threads leave room on 16 cores");
  const PlacementPlan crowded = Plan(cores, Pinning::kAuto, {2, 3}, 32);
  EXPECT_EQ(crowded.pinning, Pinning::kNode);
  EXPECT_EQ(crowded.node, 0);
}

TEST(PlacementTest, AutoDoesNothingWhereNobodySaysHowManyShareTheHost) {
  const PlacementPlan plan = Plan(CoresOf(kTwoSockets), Pinning::kAuto, {}, 2);
  EXPECT_EQ(plan.pinning, Pinning::kOff);
  EXPECT_EQ(plan.why, "threads are not pinned: how many ranks share this host is not known");
}

TEST(PlacementTest, WhoAsksForCoresAloneHasThemAll) {
  const std::vector<HostCore> cores = CoresOf(kTwoSockets, {24, 25, 26, 27});
  EXPECT_EQ(Plan(cores, Pinning::kCores, {}, 3).processors, (Processors{{24}, {26}, {25}}));
}

TEST(PlacementTest, MoreThreadsThanProcessorsCannotBePinned) {
  const absl::StatusOr<PlacementPlan> plan =
      PlanPlacement(CoresOf("core:1 pu:1"), {Pinning::kCores, {0, 2}}, 1);
  EXPECT_EQ(plan.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(plan.status().message()),
              HasSubstr("2 ranks of 1 thread cannot be pinned to 1 processor"));
  const PlacementPlan one = Plan(CoresOf("core:1 pu:1"), Pinning::kAuto, {0, 2}, 1);
  EXPECT_THAT(one.why, HasSubstr("2 ranks of 1 thread share 1 core"));
}

int ProcessorsOfThisThread() {
  cpu_set_t set;
  EXPECT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
  return CPU_COUNT(&set);
}

// On this machine, whatever it is: the threads of a pool are where their rank's are to be.
TEST(PlacementTest, BindsTheThreadsOfAPoolAndNoOther) {
  const int before = ProcessorsOfThisThread();
  const auto placement = Placement::Make({Pinning::kCores, {0, 1}}, before);
  ASSERT_TRUE(placement.ok()) << placement.status();
  std::vector<int> seen(static_cast<size_t>(before), -1);
  std::thread([&] {
    ThreadPool pool(before, [&](int thread) { (*placement)->Bind(thread); });
    (*placement)->BindCaller();
    std::atomic<int> waiting = before;
    pool.ParallelFor(before, [&](int64_t, int thread) {
      EXPECT_EQ(ProcessorsOfThisThread(), 1);
      seen[static_cast<size_t>(thread)] = sched_getcpu();
      --waiting;
      while (waiting > 0) std::this_thread::yield();  // so that each thread takes one
    });
  }).join();
  for (int thread = 0; thread < before; ++thread) {
    EXPECT_THAT((*placement)->plan().processors[static_cast<size_t>(thread)],
                ElementsAre(seen[static_cast<size_t>(thread)]));
  }
  EXPECT_EQ(ProcessorsOfThisThread(), before);
}

TEST(PlacementTest, MemoryThatIsMovedKeepsItsBytes) {
  const absl::StatusOr<HostTopology> host = HostTopology::Load();
  ASSERT_TRUE(host.ok()) << host.status();
  const int node = host->Cores(host->AllowedProcessors()).front().node;
  std::vector<std::byte> bytes(1 << 20, std::byte{42});
  const absl::Status moved = host->MoveMemory(bytes, node);  // containers may forbid it
  EXPECT_TRUE(moved.ok() || absl::IsUnavailable(moved)) << moved;
  EXPECT_EQ(bytes, std::vector<std::byte>(1 << 20, std::byte{42}));
}

}  // namespace
}  // namespace facet
