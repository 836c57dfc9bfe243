// The conformance suite's second half: how a group of every backend fails: everywhere, with a
// sentence that says who and where. How soon is held to half of a long deadline, no closer.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "kernels/sum_tree.h"
#include "tests/collectives/shared_value.h"
#include "tests/collectives/tested_backends.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLong(240'000);  // half of it is more than a machine stands still
constexpr milliseconds kShort(100);

// On a busy machine others may be late as well, or gone because of rank 2.
const std::string kRank2 = "ranks? ([0-9], )*2(, [0-9])* ";
const std::string kWithoutRank2 = kRank2 + "did not arrive at ";
const std::string kRank2IsGone = kRank2 + "(is|are) gone: ";

absl::Status Reduce(Communicator& comm, int64_t elements, int leaves = 8) {
  std::vector<int> begin;
  for (int rank = 0; rank <= comm.world(); ++rank) begin.push_back(leaves * rank / comm.world());
  const SumTree tree(leaves, begin);
  const std::vector<float> roots(static_cast<size_t>(elements * tree.root_count(comm.rank())), 1.f);
  std::vector<float> out(static_cast<size_t>(elements));
  return comm.AllReduceSum(tree, roots.data(), elements, out.data());
}

absl::Status BroadcastBytes(Communicator& comm, size_t bytes) {
  std::vector<std::byte> message(comm.rank() == 0 ? bytes : 0);
  return comm.Broadcast(&message);
}

// What a rank that fails saw, and whether all it does later fails the same way.
absl::Status ThenEverythingFails(Communicator& comm, const absl::Status& failure) {
  if (failure.ok()) return failure;
  const Clock::time_point begin = Clock::now();
  std::vector<std::vector<std::byte>> parts;
  std::vector<float> out(static_cast<size_t>(comm.world()));
  const std::vector<int64_t> counts(static_cast<size_t>(comm.world()), 1);
  const float mine = 1;
  for (const absl::Status& later :
       {comm.Barrier(), Reduce(comm, 3), BroadcastBytes(comm, 3), comm.AllGatherBytes({}, &parts),
        comm.AllGather({&mine, 1}, counts, out.data())}) {
    if (later != failure) return Internal("then {}", later.ToString());
  }
  if (Clock::now() - begin > kLong / 2) return Internal("the later calls waited");
  return failure;
}

class Failures : public ::testing::TestWithParam<const Backend*> {
 protected:
  const Backend& backend() const { return *GetParam(); }

  // Every rank does `work` and then finds everything failed; the first call must come back long
  // before its deadline.
  std::vector<absl::Status> Run(int world, const RankWork& work,
                                const ArenaOptions& options = {}) const {
    const Clock::time_point begin = Clock::now();
    auto statuses = backend().Run(
        world,
        [&](Communicator& comm) {
          comm.SetTimeout(kLong);
          return ThenEverythingFails(comm, work(comm));
        },
        options);
    EXPECT_LT(Clock::now() - begin, kLong / 2);
    return statuses;
  }

  void ExpectAllFail(const std::vector<absl::Status>& statuses, absl::StatusCode code,
                     const ::testing::Matcher<std::string>& message) const {
    for (size_t rank = 0; rank < statuses.size(); ++rank) {
      EXPECT_EQ(statuses[rank].code(), code) << "rank " << rank;
      EXPECT_THAT(MessageOf(statuses[rank]), message) << "rank " << rank;
      if (!backend().one_story) continue;
      EXPECT_EQ(statuses[rank], statuses[0]) << "ranks tell different stories";
    }
  }
};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Failures);
INSTANTIATE_TEST_SUITE_P(, Failures, ::testing::ValuesIn(BackendsThat([](const Backend& backend) {
                           return backend.ranks_max >= 8;
                         })),
                         [](const auto& info) { return info.param->name; });

// Takes no part in anything until it hears why the group has failed.
absl::Status StandStill(Communicator& comm) {
  absl::Status status;
  while (status.ok() || absl::IsUnavailable(status)) {
    std::this_thread::yield();
    status = comm.Look();
  }
  return status;
}

// An all-reduce to which one rank comes when all the others have given up: who still waited might
// have all it needs from it before it hears why the group has failed.
class MissedReduce {
 public:
  explicit MissedReduce(int world) : world_(world) {}

  // All ranks, first: the group has formed. A barrier of its own might meet the failure.
  void Meet() const {
    ++*arrived_;
    while (*arrived_ < world_) std::this_thread::yield();
  }
  absl::Status InTime(Communicator& comm, milliseconds timeout) const {
    comm.SetTimeout(timeout);
    absl::Status status = Reduce(comm, kElements);
    ++*gave_up_;
    return status;
  }
  // Over TCP what the others sent is still there, and only then the reason.
  absl::Status TooLate(Communicator& comm) const {
    while (*gave_up_ < world_ - 1) std::this_thread::yield();
    FACET_RETURN_IF_ERROR(Reduce(comm, kElements));
    return comm.Barrier();
  }

 private:
  static constexpr int64_t kElements = 640;

  const int world_;
  const SharedValue<std::atomic<int>> arrived_;
  const SharedValue<std::atomic<int>> gave_up_;
};

TEST_P(Failures, ADifferentOperationAndStepNamesBothSides) {
  const auto statuses = Run(2, [](Communicator& comm) {
    comm.SetStep(comm.rank() == 1 ? 17 : 18);
    return comm.rank() == 1 ? Reduce(comm, 640) : comm.Barrier();
  });
  ExpectAllFail(statuses, absl::StatusCode::kFailedPrecondition,
                AllOf(HasSubstr("rank 1"), HasSubstr("in all-reduce of step 17"),
                      HasSubstr("rank 0"), HasSubstr("in barrier of step 18")));
}

TEST_P(Failures, ADifferentStepOfTheSameOperationFails) {
  const auto statuses = Run(3, [](Communicator& comm) {
    comm.SetStep(comm.rank() == 2 ? 5 : 6);
    return comm.Barrier();
  });
  ExpectAllFail(
      statuses, absl::StatusCode::kFailedPrecondition,
      AllOf(HasSubstr("rank 2"), HasSubstr("barrier of step 5"), HasSubstr("barrier of step 6")));
}

TEST_P(Failures, ADifferentSizeFails) {
  for (const int64_t elements : {640, 200'000}) {  // one round, and many
    const auto statuses = Run(4, [elements](Communicator& comm) {
      comm.SetStep(3);
      return Reduce(comm, comm.rank() == 3 ? elements : elements + 1);
    });
    ExpectAllFail(
        statuses, absl::StatusCode::kFailedPrecondition,
        AllOf(HasSubstr("rank 3"), HasSubstr("all-reduce of step 3"),
              HasSubstr(fmt::format("{}", elements)), HasSubstr(fmt::format("{}", elements + 1))));
  }
}

TEST_P(Failures, ADifferentDivisionOfTheSameSizeFails) {
  const auto trees =
      Run(2, [](Communicator& comm) { return Reduce(comm, 640, comm.rank() == 0 ? 8 : 9); });
  ExpectAllFail(trees, absl::StatusCode::kFailedPrecondition, HasSubstr("divide them differently"));
  const auto parts = Run(2, [](Communicator& comm) {
    const std::vector<int64_t> counts =
        comm.rank() == 0 ? std::vector<int64_t>{4, 6} : std::vector<int64_t>{5, 5};
    const std::vector<float> mine(static_cast<size_t>(counts[comm.rank()]));
    std::vector<float> out(10);
    return comm.AllGather(mine, counts, out.data());
  });
  ExpectAllFail(parts, absl::StatusCode::kFailedPrecondition, HasSubstr("divide them differently"));
}

TEST_P(Failures, AFollowerOutOfStepWithABroadcastFailsTheLeadersNextCall) {
  // The leader does not wait for followers to arrive at a broadcast.
  const auto statuses = Run(2, [](Communicator& comm) {
    comm.SetStep(comm.rank() == 0 ? 8 : 7);
    if (const absl::Status status = BroadcastBytes(comm, 10); !status.ok()) return status;
    return comm.Barrier();
  });
  ExpectAllFail(statuses, absl::StatusCode::kFailedPrecondition,
                AllOf(HasSubstr("broadcast of step 8"), HasSubstr("broadcast of step 7")));
}

TEST_P(Failures, ARankThatStallsFailsAllAtTheDeadline) {
  const MissedReduce missed(4);
  const auto statuses = Run(4, [&missed](Communicator& comm) {
    missed.Meet();
    comm.SetStep(5);
    return comm.rank() == 2 ? missed.TooLate(comm) : missed.InTime(comm, kShort);
  });
  ExpectAllFail(statuses, absl::StatusCode::kDeadlineExceeded,
                ContainsRegex(kWithoutRank2 + "all-reduce of step 5 within 100 ms"));
}

TEST_P(Failures, ARankThatLeavesIsNamedByTheOthers) {
  // Where it is seen, the deadline is not to come first.
  const milliseconds deadline = backend().sees_who_leaves ? kLong : kShort;
  const SharedValue<std::atomic<bool>> left;
  const auto statuses = backend().Run(4, [&left, deadline](Communicator& comm) -> absl::Status {
    const absl::Status met = comm.Barrier();
    if (comm.rank() == 2) {
      *left = true;
      return met;
    }
    FACET_RETURN_IF_ERROR(met);
    while (!*left) std::this_thread::yield();  // the failure is not to meet it in its barrier
    comm.SetStep(5);
    comm.SetTimeout(deadline);
    const Clock::time_point begin = Clock::now();
    absl::Status status = Reduce(comm, 640);
    if (Clock::now() - begin > kLong / 2) return Internal("waited far beyond the deadline");
    return ThenEverythingFails(comm, status);
  });
  EXPECT_TRUE(statuses[2].ok());
  for (const int rank : {0, 1, 3}) {
    if (backend().sees_who_leaves) {
      EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(MessageOf(statuses[rank]), AllOf(ContainsRegex(kRank2IsGone + "it closed"),
                                                   HasSubstr("was in all-reduce of step 5")));
      continue;
    }
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(MessageOf(statuses[rank]),
                ContainsRegex(kWithoutRank2 + "all-reduce of step 5 within 100 ms"));
  }
}

TEST_P(Failures, AReasonOfOnesOwnIsToldToAll) {
  const auto statuses = Run(3, [](Communicator& comm) -> absl::Status {
    FACET_RETURN_IF_ERROR(comm.Barrier());
    if (comm.rank() == 1) return comm.Fail(Internal("rank 1 has doubts"));
    return comm.rank() == 0 ? comm.Barrier() : StandStill(comm);
  });
  ExpectAllFail(statuses, absl::StatusCode::kInternal, HasSubstr("rank 1 has doubts"));
}

TEST_P(Failures, AbortFromAnotherThreadEndsTheCallsOfAll) {
  const MissedReduce missed(4);
  const auto statuses = Run(4, [&missed](Communicator& comm) {
    missed.Meet();
    if (comm.rank() == 3) return missed.TooLate(comm);
    std::thread aborter;
    if (comm.rank() == 0) aborter = std::thread([&comm] { comm.Abort(); });
    absl::Status status = missed.InTime(comm, kLong);
    if (aborter.joinable()) aborter.join();
    return status;
  });
  ExpectAllFail(statuses, absl::StatusCode::kAborted, HasSubstr("rank 0 aborted the group"));
}

TEST_P(Failures, ABroadcastThatIsTooLongFails) {
  ArenaOptions options;
  options.message_bytes_max = 1'000;
  const auto statuses = Run(
      3,
      [](Communicator& comm) -> absl::Status {
        FACET_RETURN_IF_ERROR(BroadcastBytes(comm, 1'000));
        return BroadcastBytes(comm, 1'001);
      },
      options);
  ExpectAllFail(statuses, absl::StatusCode::kResourceExhausted,
                AllOf(HasSubstr("rank 0 sends 1001 bytes in broadcast"), HasSubstr("1000")));
}

TEST_P(Failures, AGatheredMessageThatIsTooLongFails) {
  ArenaOptions options;
  options.message_bytes_max = 1'000;
  const auto statuses = Run(
      3,
      [](Communicator& comm) {
        std::vector<std::vector<std::byte>> out;
        return comm.AllGatherBytes(std::vector<std::byte>(comm.rank() == 1 ? 1'001 : 1), &out);
      },
      options);
  ExpectAllFail(statuses, absl::StatusCode::kResourceExhausted,
                HasSubstr("rank 1 sends 1001 bytes in all-gather of bytes"));
}

TEST_P(Failures, AbortEndsTheCallsOfAll) {
  const auto statuses = Run(4, [](Communicator& comm) -> absl::Status {
    FACET_RETURN_IF_ERROR(comm.Barrier());
    if (comm.rank() == 3) comm.Abort();
    return Reduce(comm, 640);
  });
  ExpectAllFail(statuses, absl::StatusCode::kAborted, HasSubstr("rank 3 aborted the group"));
}

TEST_P(Failures, TheFirstFailureIsTheOneThatAllSee) {
  const auto statuses = Run(8, [](Communicator& comm) {
    comm.Abort();  // all at once
    return comm.Barrier();
  });
  ExpectAllFail(statuses, absl::StatusCode::kAborted, HasSubstr("aborted the group"));
}

// Ranks that can be killed are processes.
class KilledRanks : public Failures {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(KilledRanks);
INSTANTIATE_TEST_SUITE_P(, KilledRanks,
                         ::testing::ValuesIn(BackendsThat([](const Backend& backend) {
                           return backend.processes;
                         })),
                         [](const auto& info) { return info.param->name; });

// Somewhere inside its all-reduces of many rounds.
TEST_P(KilledRanks, AreNamedByTheOthers) {
  // Where only the deadline tells, the dead rank must be the only one that is so late.
  const milliseconds deadline = backend().sees_who_leaves ? kLong : kShort * 20;
  const auto statuses = backend().Run(4, [deadline](Communicator& comm) -> absl::Status {
    comm.SetStep(1);
    comm.SetTimeout(kLong);
    FACET_RETURN_IF_ERROR(comm.Barrier());
    comm.SetTimeout(deadline);
    std::thread killer;
    if (comm.rank() == 2) {
      killer = std::thread([] { raise(SIGKILL); });
    }
    for (uint64_t step = 2;; ++step) {  // ends by the failure, or by the death
      comm.SetStep(step);
      const Clock::time_point begin = Clock::now();
      if (absl::Status status = Reduce(comm, 300'000); !status.ok()) {
        if (Clock::now() - begin > kLong / 2) return Internal("waited far beyond the deadline");
        return ThenEverythingFails(comm, status);
      }
    }
  });
  EXPECT_THAT(MessageOf(statuses[2]), HasSubstr("wait status 0x9"));
  for (const int rank : {0, 1, 3}) {
    EXPECT_EQ(statuses[rank].code(), backend().sees_who_leaves
                                         ? absl::StatusCode::kUnavailable
                                         : absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(
        MessageOf(statuses[rank]),
        ContainsRegex(backend().sees_who_leaves ? kRank2IsGone : kWithoutRank2 + "all-reduce"));
  }
}

}  // namespace
}  // namespace facet
