// Two ranks in network namespaces of their own with a virtual cable between them: what a lost link
// and a killed peer look like. How soon they are noticed is printed, and held to half the deadline.
// Needs the right to make namespaces, and `ip`; else it is skipped.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "base/check.h"
#include "base/status.h"
#include "tests/collectives/group_harness.h"
#include "tests/collectives/shared_value.h"
#include "tests/collectives/tree_oracle.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr milliseconds kLong(60'000);
constexpr int kPort = 7777;  // the namespaces are new: every port is free

bool Shell(const std::string& command) {
  return std::system((command + " 2>/dev/null").c_str()) == 0;
}

// Also with a virtual cable in them, which a kernel may lack.
bool MayMakeNamespaces() {
  const pid_t child = fork();
  if (child == 0) {
    const bool made = unshare(CLONE_NEWNET) == 0 && Shell("ip link set lo up") &&
                      Shell("ip link add wire type veth peer name other");
    _exit(made ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  return status == 0;
}

constexpr int kLaid = 1, kNotLaid = 2;

// What the two processes share to tell each other the time.
struct Shared {
  std::atomic<int> pids[2];
  std::atomic<int> cable;  // of kLaid and kNotLaid, once it is known
  std::atomic<int> ready;
  std::atomic<int64_t> event_us;  // when the link went down or the peer was killed
  std::atomic<int64_t> noticed_us[2];
};

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

class TwoHosts : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MayMakeNamespaces()) GTEST_SKIP() << "this user may not make network namespaces";
  }

  // In the child of `rank`: a host with an address and a cable to the other, which are gone with
  // the processes.
  absl::Status BecomeHost(int rank) {
    if (unshare(CLONE_NEWNET) != 0) return Internal("unshare");
    shared_->pids[rank] = getpid();
    while (shared_->pids[1 - rank] == 0) std::this_thread::yield();
    // Rank 0 lays the cable once both namespaces are there.
    if (rank == 0) {
      const bool laid = Shell(fmt::format("ip link add wire type veth peer name wire netns {}",
                                          shared_->pids[1].load()));
      shared_->cable = laid ? kLaid : kNotLaid;
    }
    while (shared_->cable == 0) std::this_thread::sleep_for(milliseconds(5));
    if (shared_->cable == kNotLaid) return Internal("cannot lay a virtual cable");
    if (!Shell(fmt::format("ip addr add 10.77.0.{}/24 dev wire && ip link set wire up && "
                           "ip link set lo up",
                           rank + 1))) {
      return Internal("cannot set an address");
    }
    ++shared_->ready;
    while (shared_->ready < 2) std::this_thread::yield();
    return absl::OkStatus();
  }

  static absl::StatusOr<std::unique_ptr<Communicator>> Join(int rank) {
    TcpGroup group = {
        .rank = rank,
        .world = 2,
        .addresses = {fmt::format("10.77.0.1:{}", kPort), fmt::format("10.77.0.2:{}", kPort)}};
    FACET_ASSIGN_OR_RETURN(TcpListener listener, TcpListener::Bind(group.addresses[rank]));
    TcpOptions options;
    options.attach_timeout = kLong;
    return JoinTcpGroup(std::move(listener), group, options);
  }

  // Both ranks do `call` until it fails; rank 1 starts `disturb` on a thread once it has worked for
  // a while.
  std::vector<absl::Status> CallUntilFailure(const RankWork& call,
                                             const std::function<void()>& disturb) {
    return RunChildren(2, [&](int rank) -> absl::Status {
      FACET_RETURN_IF_ERROR(BecomeHost(rank));
      FACET_ASSIGN_OR_RETURN(const auto comm, Join(rank));
      comm->SetTimeout(kLong);
      std::thread disturber;
      absl::Status status;
      for (int step = 0; status.ok(); ++step) {
        if (rank == 1 && step == 20) disturber = std::thread(disturb);
        comm->SetStep(static_cast<uint64_t>(step));
        status = call(*comm);
      }
      shared_->noticed_us[rank] = NowUs();
      if (disturber.joinable()) disturber.join();
      return status;
    });
  }
  double NoticedAfterMs(int rank) const {
    return static_cast<double>(shared_->noticed_us[rank] - shared_->event_us) * 1e-3;
  }

  const SharedValue<Shared> shared_;
};

absl::Status Reduce(Communicator& comm) {
  const SumTree tree(2, {0, 1, 2});
  const std::vector<float> roots = NaiveRoots(tree, comm.rank(), 5'000);
  std::vector<float> out(5'000);
  return comm.AllReduceSum(tree, roots.data(), 5'000, out.data());
}

auto NamesALostHost(int peer) {
  return ::testing::AllOf(HasSubstr(fmt::format("rank {} is gone", peer)),
                          AnyOf(HasSubstr("its host does not answer"), HasSubstr("o route to host"),
                                HasSubstr("etwork is unreachable")));
}

TEST_F(TwoHosts, ALostLinkIsNoticedByBothLongBeforeTheDeadline) {
  const auto statuses = CallUntilFailure(Reduce, [this] {
    shared_->event_us = NowUs();
    FACET_CHECK(Shell("ip link set wire down"));
  });
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kUnavailable) << statuses[rank];
    EXPECT_THAT(MessageOf(statuses[rank]), NamesALostHost(1 - rank));
    EXPECT_LT(NoticedAfterMs(rank), static_cast<double>(kLong.count()) / 2);
    std::printf("rank %d noticed the lost link after %.0f ms: %s\n", rank, NoticedAfterMs(rank),
                MessageOf(statuses[rank]).c_str());
  }
}

// Nothing is under way, rank 0 waits for the next plan as followers do: the keepalive notices.
TEST_F(TwoHosts, ALostLinkIsNoticedByWhoOnlyWaits) {
  const auto statuses = RunChildren(2, [&](int rank) -> absl::Status {
    FACET_RETURN_IF_ERROR(BecomeHost(rank));
    FACET_ASSIGN_OR_RETURN(const auto comm, Join(rank));
    comm->SetTimeout(kLong);
    if (rank == 1) {
      shared_->event_us = NowUs();
      FACET_CHECK(Shell("ip link set wire down"));
      while (shared_->noticed_us[0] == 0) std::this_thread::sleep_for(milliseconds(5));
      return absl::OkStatus();
    }
    absl::Status status = comm->Barrier();
    shared_->noticed_us[0] = NowUs();
    return status;
  });
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
  EXPECT_THAT(MessageOf(statuses[0]), NamesALostHost(1));
  EXPECT_LT(NoticedAfterMs(0), static_cast<double>(kLong.count()) / 2);
  std::printf("noticed the lost link after %.0f ms: %s\n", NoticedAfterMs(0),
              MessageOf(statuses[0]).c_str());
}

TEST_F(TwoHosts, AKilledPeerIsNoticedLongBeforeTheDeadline) {
  const auto statuses = CallUntilFailure(Reduce, [this] {
    shared_->event_us = NowUs();
    raise(SIGKILL);
  });
  EXPECT_THAT(MessageOf(statuses[1]), HasSubstr("wait status 0x9"));
  EXPECT_EQ(statuses[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(statuses[0]), HasSubstr("rank 1 is gone: it closed the connection"));
  EXPECT_LT(NoticedAfterMs(0), static_cast<double>(kLong.count()) / 2);
  std::printf("noticed the killed peer after %.2f ms\n", NoticedAfterMs(0));
}

}  // namespace
}  // namespace facet
