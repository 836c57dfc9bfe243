// What only NCCL can do to a group, and what becomes of the group: with the stand-in's faults.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/nccl_collectives.h"
#include "tests/collectives/device_ranks.h"
#include "tests/collectives/nccl_backends.h"
#include "tests/collectives/tree_oracle.h"
#include "tests/cuda_emulator/nccl_host.h"

namespace facet {
namespace {

using cuda::NcclResult;
using cuda_emulator::LiveNcclComms;
using cuda_emulator::NcclFaultsMet;
using cuda_emulator::SetNcclFaults;
using cuda_emulator::SetNcclFound;
using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLong(60'000);
constexpr milliseconds kShort(200);

absl::Status Reduce(Communicator& comm, int64_t elements = 640) {
  const SumTree tree(8, EvenRanks(8, comm.world()));
  const std::vector<float> roots = NaiveRoots(tree, comm.rank(), elements);
  std::vector<float> out(static_cast<size_t>(elements));
  FACET_RETURN_IF_ERROR(comm.AllReduceSum(tree, roots.data(), elements, out.data()));
  return out == NaiveTreeSums(8, elements) ? absl::OkStatus() : Internal("other sums");
}

class NcclFailures : public ::testing::Test {
 protected:
  ~NcclFailures() override {
    SetNcclFound(true);
    for (int rank = 0; rank < kWorld; ++rank) SetNcclFaults(rank, {});
    EXPECT_EQ(LiveNcclComms(), 0) << "somebody was not aborted";
  }

  static constexpr int kWorld = 3;

  static std::vector<absl::Status> Run(const RankWork& work,
                                       const cuda::NcclOptions& options = OptionsFor({})) {
    return RunNcclRanks(TakeLocalGroup(kWorld, {}), options, work);
  }
  static void ExpectAllFail(const std::vector<absl::Status>& statuses, absl::StatusCode code,
                            const ::testing::Matcher<std::string>& message) {
    for (const absl::Status& status : statuses) {
      EXPECT_EQ(status.code(), code);
      EXPECT_THAT(MessageOf(status), message);
    }
  }
};

TEST_F(NcclFailures, AnAsynchronousErrorOfOneRankFailsAllPromptly) {
  SetNcclFaults(1, {.groups = kFormingGroups + 1, .error = NcclResult::kRemoteError});
  const auto statuses = Run([](Communicator& comm) -> absl::Status {
    comm.SetTimeout(kLong);
    comm.SetStep(16);
    FACET_RETURN_IF_ERROR(Reduce(comm));
    comm.SetStep(17);
    const Clock::time_point begin = Clock::now();
    const absl::Status status = Reduce(comm);
    if (Clock::now() - begin > kLong / 2) return Internal("waited for the deadline");
    return comm.Barrier() == status ? status : Internal("then other words");
  });
  ExpectAllFail(
      statuses, absl::StatusCode::kInternal,
      AllOf(HasSubstr("rank 1 was in all-reduce of step 17"), HasSubstr("NCCL: emulated error 6")));
}

TEST_F(NcclFailures, ATransferThatDoesNotEndFailsAllAtTheDeadline) {
  std::vector<absl::Status> statuses;
  milliseconds timeout = kShort / 2;
  do {  // until the time is enough for all ranks to arrive
    timeout *= 2;
    SetNcclFaults(2, {.groups = kFormingGroups});
    statuses = Run([timeout](Communicator& comm) {
      comm.SetStep(9);
      comm.SetTimeout(timeout);
      return Reduce(comm);
    });
  } while (timeout < kLong && MessageOf(statuses[0]).find("did not arrive") != std::string::npos);
  ExpectAllFail(statuses, absl::StatusCode::kDeadlineExceeded,
                AllOf(HasSubstr("was in all-reduce of step 9"), HasSubstr("did not end in time")));
}

TEST_F(NcclFailures, AbortEndsATransferThatDoesNotEnd) {
  SetNcclFaults(2, {.groups = kFormingGroups});
  const Clock::time_point begin = Clock::now();
  const auto statuses = Run([met = NcclFaultsMet()](Communicator& comm) {
    comm.SetTimeout(kLong);
    std::thread aborter;
    if (comm.rank() == 0) {
      aborter = std::thread([&comm, met] {
        while (NcclFaultsMet() == met) std::this_thread::yield();
        comm.Abort();
      });
    }
    absl::Status status = Reduce(comm);
    if (aborter.joinable()) aborter.join();
    return status;
  });
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  ExpectAllFail(statuses, absl::StatusCode::kAborted, HasSubstr("rank 0 aborted the group"));
}

// Rank 1 arrives at the call and is gone before its part is done.
TEST_F(NcclFailures, APeerThatIsGoneIsSeenBesideTcpBeforeTheDeadline) {
  const Clock::time_point begin = Clock::now();
  const auto statuses =
      RunNcclRanks(TakeTcpGroup(2, {}), OptionsFor({}), [](Communicator& comm) -> absl::Status {
        comm.SetTimeout(kLong);
        if (comm.rank() == 0) return Reduce(comm, 16);
        // As the other's call announces itself.
        const SumTree tree(8, EvenRanks(8, 2));
        return comm.Meet(WithDetail(AllReduceOf(tree, 16, 2), 16 * 2));
      });
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(statuses[0]), HasSubstr("rank 1 is gone"));
}

TEST_F(NcclFailures, ARankThatCannotInitialiseFailsTheForming) {
  SetNcclFaults(1, {.init = NcclResult::kSystemError});
  const Clock::time_point begin = Clock::now();
  const auto statuses = Run([](Communicator& comm) { return comm.Barrier(); });
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  ExpectAllFail(statuses, absl::StatusCode::kInternal,
                AllOf(HasSubstr("rank 1 forming the group"), HasSubstr("emulated error 2")));
}

TEST_F(NcclFailures, APeerThatDoesNotComeFailsTheFormingAtItsDeadline) {
  SetNcclFaults(1, {.init = NcclResult::kInProgress});
  cuda::NcclOptions options = OptionsFor({});
  options.attach_timeout = kShort;
  const auto statuses = Run([](Communicator& comm) { return comm.Barrier(); }, options);
  ExpectAllFail(statuses, absl::StatusCode::kDeadlineExceeded, HasSubstr("did not"));
}

TEST_F(NcclFailures, WithoutTheLibraryAllSayWhatIsMissing) {
  SetNcclFound(false);
  const auto statuses = Run([](Communicator& comm) { return comm.Barrier(); });
  ExpectAllFail(statuses, absl::StatusCode::kFailedPrecondition,
                HasSubstr("there is no emulated NCCL"));
}

TEST_F(NcclFailures, AGroupOfOneNeedsNoNccl) {
  SetNcclFound(false);
  EXPECT_ALL_OK(RunNcclRanks(TakeLocalGroup(1, {}), OptionsFor({}),
                             [](Communicator& comm) { return Reduce(comm); }));
}

TEST_F(NcclFailures, WithoutRoomForItsBufferARankFailsTheForming) {
  cuda::NcclOptions options = OptionsFor({});
  options.buffer_bytes = int64_t{1} << 40;
  const auto statuses = Run([](Communicator& comm) { return comm.Barrier(); }, options);
  ExpectAllFail(statuses, absl::StatusCode::kResourceExhausted,
                HasSubstr("collectives need 1024.00 GiB"));
}

// What a rank says of itself before its group forms.
TEST(NcclCollectives, KnowTheVersionAndTheGpu) {
  const auto device = cuda::MakeCudaDevice({.device = 3, .workspace_bytes = int64_t{1} << 20});
  ASSERT_TRUE(device.ok()) << device.status();
  const auto seat = (*device)->collectives()->Seat();
  ASSERT_TRUE(seat.ok()) << seat.status();
  EXPECT_EQ(seat->version, 22809);
  EXPECT_EQ(seat->gpu, "emulated-3");
  SetNcclFound(false);
  EXPECT_EQ((*device)->collectives()->Seat().status().code(),
            absl::StatusCode::kFailedPrecondition);
  SetNcclFound(true);
}

}  // namespace
}  // namespace facet
