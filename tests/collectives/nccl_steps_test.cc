// Steps whose exchanges nobody waits for but who reads what comes of them: as graphs, two at once,
// and how they fail.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "tests/collectives/nccl_backends.h"
#include "tests/collectives/tree_oracle.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/cuda_emulator/nccl_host.h"

namespace facet {
namespace {

using cuda_emulator::GraphLaunches;
using cuda_emulator::GraphsMade;
using cuda_emulator::LiveNcclComms;
using cuda_emulator::NcclFaultsMet;
using cuda_emulator::SetNcclFaults;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLong(60'000);
constexpr milliseconds kShort(1'000);
constexpr int64_t kElements = 640;
constexpr int kLeaves = 8;
constexpr int kCalls = 4;  // of a step: all-reduces, each of the sums that the one before gave
constexpr float kUntouched = -7;

// A rank that makes steps as a model does: a decode step's launches wait for the first who reads.
class SteppingRank {
 public:
  SteppingRank(Device& device, Communicator& comm)
      : device_(device), comm_(comm), tree_(kLeaves, EvenRanks(kLeaves, comm.world())) {
    const int64_t roots = int64_t{tree_.root_count(comm.rank())} * kElements;
    roots_ = *device.AllocateFloats(roots);
    for (Floats& out : outs_) out = *device.AllocateFloats(kElements);
    for (Floats& out : outs_) {
      device.CopyIn(std::vector<float>(static_cast<size_t>(kElements), kUntouched), out);
    }
  }

  Communicator& comm() { return comm_; }

  // The roots of the next steps are the oracle's times `scale`, a power of two.
  void Give(float scale) {
    std::vector<float> roots = NaiveRoots(tree_, comm_.rank(), kElements);
    for (float& root : roots) root *= scale;
    device_.CopyIn(roots, roots_);
  }

  // Puts a step's calls; those to outs_[first] and the places behind it.
  absl::Status Put(uint64_t step, int calls = kCalls, int first = 0, int64_t elements = kElements) {
    comm_.SetStep(step);
    device_.BeginStep({1, runs_});
    for (int i = 0; i < calls; ++i) {
      FACET_RETURN_IF_ERROR(comm_.AllReduceSum(tree_, roots_.data, elements,
                                               outs_[static_cast<size_t>(first + i)].data));
    }
    return absl::OkStatus();
  }

  absl::Status Check(float scale, int first = 0) {
    FACET_RETURN_IF_ERROR(comm_.Finish());
    for (int i = 0; i < kCalls; ++i) FACET_RETURN_IF_ERROR(CheckSums(scale, first + i));
    return absl::OkStatus();
  }

  // What a step that failed must not have touched.
  absl::Status CheckUntouched(int first, int calls) {
    std::vector<float> got(static_cast<size_t>(kElements));
    for (int i = 0; i < calls; ++i) {
      device_.CopyOut(outs_[static_cast<size_t>(first + i)], got);
      for (const float value : got) {
        if (value != kUntouched) return Internal("call {} has had an effect", i);
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status CheckSums(float scale, int place) {
    static const auto* const kSums = new std::vector<float>(NaiveTreeSums(kLeaves, kElements));
    std::vector<float> got(static_cast<size_t>(kElements));
    device_.CopyOut(outs_[static_cast<size_t>(place)], got);
    for (size_t i = 0; i < got.size(); ++i) {
      if (got[i] != (*kSums)[i] * scale) return Internal("place {}: another sum {}", place, i);
    }
    return absl::OkStatus();
  }

  Device& device_;
  Communicator& comm_;
  const SumTree tree_;
  std::array<Floats, 2 * kCalls> outs_;
  Floats roots_;
  const std::vector<SequenceRun> runs_ = {{.rows = 1}};
};

class NcclSteps : public ::testing::TestWithParam<int> {
 protected:
  ~NcclSteps() override {
    for (int rank = 0; rank < kRanksMax; ++rank) SetNcclFaults(rank, {});
    EXPECT_EQ(LiveNcclComms(), 0) << "somebody was not aborted";
  }

  static constexpr int kRanksMax = 3;
  static int world() { return GetParam(); }

  static std::vector<absl::Status> Run(const std::function<absl::Status(SteppingRank&)>& work,
                                       milliseconds timeout = kLong) {
    return RunNcclDevices(TakeLocalGroup(world(), {}), OptionsFor({}),
                          [&](Device& device, std::unique_ptr<Communicator> comm) {
                            comm->SetTimeout(timeout);
                            SteppingRank rank(device, *comm);
                            return work(rank);
                          });
  }
  static void ExpectAllFail(const std::vector<absl::Status>& statuses, absl::StatusCode code,
                            const ::testing::Matcher<std::string>& message) {
    for (const absl::Status& status : statuses) {
      EXPECT_EQ(status.code(), code);
      EXPECT_THAT(MessageOf(status), message);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, NcclSteps, ::testing::Values(2, 3),
                         [](const auto& info) { return std::to_string(info.param); });

constexpr int kSteps = 6;

absl::Status MakeSteps(SteppingRank& rank) {
  for (int step = 1; step <= kSteps; ++step) {
    const auto scale = static_cast<float>(1 << step);
    rank.Give(scale);
    FACET_RETURN_IF_ERROR(rank.Put(static_cast<uint64_t>(step)));
    FACET_RETURN_IF_ERROR(rank.Check(scale));
  }
  return absl::OkStatus();
}

// The first time its launches go one by one, the second time they are captured.
TEST_P(NcclSteps, AStepIsOneGraphWithItsExchangesInIt) {
  const int64_t made = GraphsMade();
  const int64_t launches = GraphLaunches();
  EXPECT_ALL_OK(Run(MakeSteps));
  EXPECT_EQ(GraphsMade() - made, world());
  EXPECT_EQ(GraphLaunches() - launches, world() * (kSteps - 1));
}

TEST_P(NcclSteps, WhereNcclRefusesTheCaptureLaunchesStaySingle) {
  for (int rank = 0; rank < world(); ++rank) SetNcclFaults(rank, {.capture = false});
  const int64_t launches = GraphLaunches();
  EXPECT_ALL_OK(Run(MakeSteps));
  EXPECT_EQ(GraphLaunches(), launches);
}

// One rank's exchanges stand still until all have put two steps on their streams.
TEST_P(NcclSteps, TwoStepsAreUnderWayAtOnce) {
  std::atomic<bool> go{false};
  std::atomic<int> ready{0};
  SetNcclFaults(world() - 1, {.groups = kFormingGroups, .until = &go});
  EXPECT_ALL_OK(Run([&](SteppingRank& rank) -> absl::Status {
    rank.Give(2);
    FACET_RETURN_IF_ERROR(rank.Put(1));
    FACET_RETURN_IF_ERROR(rank.Put(2, kCalls, kCalls));
    rank.comm().SetStep(3);  // what belongs to step 2 is on the stream now
    if (++ready == world()) go = true;
    FACET_RETURN_IF_ERROR(rank.Check(2, 0));
    return rank.Check(2, kCalls);
  }));
}

// Whether its step is launched call by call or replayed. Two are under way; the older is to blame.
TEST_P(NcclSteps, APeerThatStopsInAStepIsNoticedByAllAndTheStepNamed) {
  for (const int good : {0, 2, 4}) {
    SetNcclFaults(1, {.groups = kFormingGroups + good * kCalls + 1});
    const auto statuses = Run([good](SteppingRank& rank) -> absl::Status {
      rank.Give(1);
      for (int step = 1; step <= good; ++step) {
        FACET_RETURN_IF_ERROR(rank.Put(static_cast<uint64_t>(step)));
        FACET_RETURN_IF_ERROR(rank.Check(1));
      }
      FACET_RETURN_IF_ERROR(rank.Put(71));
      FACET_RETURN_IF_ERROR(rank.Put(72, kCalls, kCalls));
      rank.comm().SetStep(73);  // what belongs to step 72 is on the stream now: all have come
      rank.comm().SetTimeout(kShort);
      const Clock::time_point begin = Clock::now();
      const absl::Status status = rank.Check(1);
      if (Clock::now() - begin > kLong / 2) return Internal("waited for ever");
      // What comes later fails at once, the same way.
      if (rank.Put(73) != status) return Internal("the next step has other words");
      if (rank.comm().Barrier() != status) return Internal("the host has other words");
      return status;
    });
    ExpectAllFail(
        statuses, absl::StatusCode::kDeadlineExceeded,
        AllOf(HasSubstr("was in exchanges of step 71"), HasSubstr("did not end in time")));
  }
}

TEST_P(NcclSteps, AnErrorOfNcclInAReplayedStepFailsAllPromptly) {
  SetNcclFaults(
      1, {.groups = kFormingGroups + 4 * kCalls + 2, .error = cuda::NcclResult::kRemoteError});
  const Clock::time_point begin = Clock::now();
  const auto statuses = Run([](SteppingRank& rank) { return MakeSteps(rank); });
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  ExpectAllFail(
      statuses, absl::StatusCode::kInternal,
      AllOf(HasSubstr("rank 1 was in exchanges of step 5"), HasSubstr("NCCL: emulated error 6")));
}

TEST_P(NcclSteps, AbortEndsAWaitForTheDevice) {
  SetNcclFaults(1, {.groups = kFormingGroups + 1});
  const Clock::time_point begin = Clock::now();
  const auto statuses = Run([met = NcclFaultsMet()](SteppingRank& rank) -> absl::Status {
    FACET_RETURN_IF_ERROR(rank.Put(1));
    std::thread aborter;
    if (rank.comm().rank() == 0) {
      aborter = std::thread([&rank, met] {
        while (NcclFaultsMet() == met) std::this_thread::yield();
        rank.comm().Abort();
      });
    }
    absl::Status status = rank.comm().Finish();
    if (aborter.joinable()) aborter.join();
    return status;
  });
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  ExpectAllFail(statuses, absl::StatusCode::kAborted, HasSubstr("rank 0 aborted the group"));
}

// Ranks in different steps, or with different calls: nothing of it goes to NCCL.
class DifferentSteps : public NcclSteps {
 protected:
  // The last rank does the one, the others the other; after three good steps, so that graphs of
  // some of it are there.
  static void ExpectRefused(const std::function<absl::Status(SteppingRank&)>& last,
                            const std::function<absl::Status(SteppingRank&)>& others,
                            const ::testing::Matcher<std::string>& message) {
    const Clock::time_point begin = Clock::now();
    const auto statuses = Run([&](SteppingRank& rank) -> absl::Status {
      rank.Give(1);
      for (uint64_t step = 1; step <= 3; ++step) {
        FACET_RETURN_IF_ERROR(rank.Put(step));
        FACET_RETURN_IF_ERROR(rank.Check(1));
      }
      const bool is_last = rank.comm().rank() + 1 == rank.comm().world();
      FACET_RETURN_IF_ERROR(is_last ? last(rank) : others(rank));
      const absl::Status status = rank.comm().Finish();
      FACET_RETURN_IF_ERROR(rank.CheckUntouched(kCalls, kCalls));
      return status;
    });
    EXPECT_LT(Clock::now() - begin, kLong / 2);
    ExpectAllFail(statuses, absl::StatusCode::kFailedPrecondition, message);
  }
};

INSTANTIATE_TEST_SUITE_P(Ranks, DifferentSteps, ::testing::Values(2, 3),
                         [](const auto& info) { return std::to_string(info.param); });

TEST_P(DifferentSteps, OneMoreCallFails) {
  ExpectRefused(
      [](SteppingRank& rank) { return rank.Put(7, kCalls, kCalls); },
      [](SteppingRank& rank) { return rank.Put(7, kCalls - 1, kCalls); },
      AllOf(HasSubstr("exchanges at once in step 7"), HasSubstr("makes 3"), HasSubstr("makes 4")));
}

TEST_P(DifferentSteps, AnotherSizeFails) {
  ExpectRefused([](SteppingRank& rank) { return rank.Put(7, kCalls, kCalls, 320); },
                [](SteppingRank& rank) { return rank.Put(7, kCalls, kCalls, 321); },
                AllOf(HasSubstr("4 exchanges at once in step 7"), HasSubstr("not the same")));
}

TEST_P(DifferentSteps, AnotherStepFails) {
  ExpectRefused([](SteppingRank& rank) { return rank.Put(8, kCalls, kCalls); },
                [](SteppingRank& rank) { return rank.Put(7, kCalls, kCalls); },
                AllOf(HasSubstr("exchanges of step 8"), HasSubstr("exchanges of step 7")));
}

TEST_P(DifferentSteps, ARankThatIsWithTheHostsFails) {
  ExpectRefused([](SteppingRank& rank) { return rank.comm().Barrier(); },
                [](SteppingRank& rank) { return rank.Put(7, kCalls, kCalls); },
                AllOf(HasSubstr("exchanges of step 7"), HasSubstr("barrier of step 3")));
}

}  // namespace
}  // namespace facet
