// Forming a group of processes: who is let in, what is left behind.

#include "kernels/collectives/shm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "tests/collectives/group_harness.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using CommunicatorOr = absl::StatusOr<std::unique_ptr<Communicator>>;

constexpr milliseconds kLong(120'000);  // more than a machine stands still

ShmOptions Options(milliseconds timeout = kLong, uint64_t nonce = 1) {
  ShmOptions options;
  options.arena.slot_bytes = kMinSlotBytes;
  options.attach_timeout = timeout;
  options.nonce = nonce;
  return options;
}

// All abstract sockets of the host that carry `name`, and all files of /dev/shm.
std::vector<std::string> TracesOf(const std::string& name) {
  std::vector<std::string> traces;
  std::ifstream sockets("/proc/net/unix");
  for (std::string line; std::getline(sockets, line);) {
    if (line.ends_with(":" + name)) traces.push_back(line);
  }
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().string().find("facet") != std::string::npos) traces.push_back(entry.path());
  }
  return traces;
}

// Rank 0 on a thread of its own; the other ranks of these tests may be threads, too.
class Leader {
 public:
  Leader(const std::string& name, int world, const ShmOptions& options = Options())
      : thread_([=, this] { result_ = CreateShmGroup(name, world, options); }) {}
  ~Leader() {
    if (thread_.joinable()) thread_.join();
  }
  CommunicatorOr& Result() {
    thread_.join();
    return result_;
  }

 private:
  CommunicatorOr result_ = absl::UnknownError("still forming");
  std::thread thread_;
};

// A connected socket to the group's name, once its leader listens.
int ConnectTo(const std::string& name) {
  const std::string path = std::string(1, '\0') + "facet-collectives:" + name;
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);
  FACET_CHECK(fd >= 0);
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  while (connect(fd, reinterpret_cast<sockaddr*>(&address), length) != 0) {
    std::this_thread::yield();
  }
  return fd;
}

TEST(ShmGroup, ForAllThatAttachAndLeavesNoTrace) {
  const std::string name = UniqueGroupName();
  Leader leader(name, 3);
  CommunicatorOr first;
  std::thread attach([&] { first = AttachShmGroup(name, 1, 3, Options()); });
  CommunicatorOr second = AttachShmGroup(name, 2, 3, Options());
  attach.join();
  CommunicatorOr& zero = leader.Result();
  ASSERT_TRUE(zero.ok()) << zero.status();
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ((*zero)->rank(), 0);
  EXPECT_EQ((*first)->rank(), 1);
  EXPECT_EQ((*second)->world(), 3);
  EXPECT_THAT(TracesOf(name), IsEmpty());
}

TEST(ShmGroup, OfOneNeedsNobody) {
  CommunicatorOr group = CreateShmGroup(UniqueGroupName(), 1, Options(milliseconds(0)));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_TRUE((*group)->Barrier().ok());
}

TEST(ShmGroup, AFollowerMayBeFirst) {
  const std::string name = UniqueGroupName();
  std::atomic<bool> started{false};
  CommunicatorOr follower;
  std::thread attach([&] {
    started = true;
    follower = AttachShmGroup(name, 1, 2, Options());
  });
  while (!started) std::this_thread::yield();
  Leader leader(name, 2);
  attach.join();
  EXPECT_TRUE(follower.ok()) << follower.status();
  EXPECT_TRUE(leader.Result().ok());
}

TEST(ShmGroup, MissingRanksAreNamed) {
  std::string name;
  CommunicatorOr zero, follower;
  milliseconds patience(250);
  do {  // until rank 0 is as patient as rank 2 is slow
    patience *= 2;
    name = UniqueGroupName();
    Leader leader(name, 4, Options(patience));
    follower = AttachShmGroup(name, 2, 4, Options(2 * patience));
    zero = std::move(leader.Result());
  } while (patience < kLong && (absl::IsDeadlineExceeded(follower.status()) ||
                                MessageOf(zero.status()).starts_with("rank(s) 1, 2, 3")));
  EXPECT_EQ(zero.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(zero.status()), HasSubstr("rank(s) 1, 3"));
  EXPECT_EQ(follower.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(follower.status()), HasSubstr("rank 0 went away"));
  EXPECT_THAT(TracesOf(name), IsEmpty());
}

TEST(ShmGroup, AFollowerWaitsForItsLeaderUntilTheDeadline) {
  CommunicatorOr alone = AttachShmGroup(UniqueGroupName(), 1, 2, Options(milliseconds(30)));
  EXPECT_EQ(alone.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(alone.status()), HasSubstr("did not appear"));

  const std::string name = UniqueGroupName();
  Leader leader(name, 3);
  close(ConnectTo(name));  // now it listens
  CommunicatorOr early = AttachShmGroup(name, 1, 3, Options(milliseconds(200)));
  EXPECT_EQ(early.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(early.status()), HasSubstr("was not whole in time (rank 1 waited)"));
  // Its place is free again.
  CommunicatorOr again;
  std::thread attach([&] { again = AttachShmGroup(name, 1, 3, Options()); });
  CommunicatorOr other = AttachShmGroup(name, 2, 3, Options());
  attach.join();
  EXPECT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(leader.Result().ok());
}

TEST(ShmGroup, RefusesWhoDoesNotBelongAndGoesOn) {
  const std::string name = UniqueGroupName();
  Leader leader(name, 2);
  const auto refusal = [&](int rank, int world, uint64_t nonce) {
    const absl::Status status = AttachShmGroup(name, rank, world, Options(kLong, nonce)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
    return MessageOf(status);
  };
  EXPECT_THAT(refusal(1, 2, 9), HasSubstr("has nonce 0x9, rank 0 has 0x1"));
  EXPECT_THAT(refusal(1, 3, 1), HasSubstr("expects 3 ranks, rank 0 expects 2"));
  CommunicatorOr follower = AttachShmGroup(name, 1, 2, Options());
  EXPECT_TRUE(follower.ok()) << follower.status();
  EXPECT_TRUE(leader.Result().ok());
}

TEST(ShmGroup, HasOnePlaceForARank) {
  const std::string name = UniqueGroupName();
  Leader leader(name, 3);
  std::vector<CommunicatorOr> twins(2);
  std::vector<std::thread> attaching;
  std::atomic<int> refused{0};
  for (CommunicatorOr& twin : twins) {
    attaching.emplace_back([&] {
      twin = AttachShmGroup(name, 1, 3, Options());
      if (!twin.ok()) ++refused;
    });
  }
  while (refused == 0) std::this_thread::yield();
  CommunicatorOr other = AttachShmGroup(name, 2, 3, Options());
  for (std::thread& thread : attaching) thread.join();
  EXPECT_NE(twins[0].ok(), twins[1].ok());
  const CommunicatorOr& loser = twins[0].ok() ? twins[1] : twins[0];
  EXPECT_THAT(MessageOf(loser.status()), HasSubstr("no place for another rank 1"));
  EXPECT_TRUE(other.ok()) << other.status();
  EXPECT_TRUE(leader.Result().ok());
}

TEST(ShmGroup, StrangersDoNotDisturb) {
  const std::string name = UniqueGroupName();
  Leader leader(name, 2);
  const int silent = ConnectTo(name);
  const int gone = ConnectTo(name);
  close(gone);
  const int babbling = ConnectTo(name);
  ASSERT_EQ(send(babbling, "hello", 5, 0), 5);
  char answer[512] = {};
  EXPECT_GT(recv(babbling, answer, sizeof(answer), 0), 0);  // a refusal ...
  EXPECT_EQ(recv(babbling, answer, sizeof(answer), 0), 0);  // ... and the end
  CommunicatorOr follower = AttachShmGroup(name, 1, 2, Options());
  EXPECT_TRUE(follower.ok()) << follower.status();
  EXPECT_TRUE(leader.Result().ok());
  close(silent);
  close(babbling);
}

TEST(ShmGroup, ASecondLeaderOfTheNameIsRefused) {
  const std::string name = UniqueGroupName();
  Leader leader(name, 2);
  close(ConnectTo(name));  // now it listens
  const CommunicatorOr second = CreateShmGroup(name, 2, Options());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(AttachShmGroup(name, 1, 2, Options()).ok());
  EXPECT_TRUE(leader.Result().ok());
}

TEST(ShmGroup, ALeaderKilledWhileFormingLeavesNothingAndFreesTheName) {
  const std::string name = UniqueGroupName();
  const pid_t leader = fork();
  ASSERT_GE(leader, 0);
  if (leader == 0) {
    CreateShmGroup(name, 2, Options()).IgnoreError();
    _exit(0);
  }
  close(ConnectTo(name));
  ASSERT_EQ(kill(leader, SIGKILL), 0);
  ASSERT_EQ(waitpid(leader, nullptr, 0), leader);
  EXPECT_THAT(TracesOf(name), IsEmpty());
  Leader successor(name, 2);
  EXPECT_TRUE(AttachShmGroup(name, 1, 2, Options()).ok());
  EXPECT_TRUE(successor.Result().ok());
}

TEST(ShmGroup, AWholeGroupThatIsKilledLeavesNothing) {
  const std::string name = UniqueGroupName();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.push_back(fork());
    ASSERT_GE(ranks.back(), 0);
    if (ranks.back() != 0) continue;
    auto comm =
        rank == 0 ? CreateShmGroup(name, 2, Options()) : AttachShmGroup(name, rank, 2, Options());
    FACET_CHECK(comm.ok() && write(ends[1], "x", 1) == 1);
    while (true) pause();
  }
  char ready[2];
  ASSERT_EQ(read(ends[0], ready, 1), 1);
  ASSERT_EQ(read(ends[0], ready, 1), 1);
  EXPECT_THAT(TracesOf(name), IsEmpty());  // also while it lives
  for (const pid_t rank : ranks) {
    ASSERT_EQ(kill(rank, SIGKILL), 0);
    ASSERT_EQ(waitpid(rank, nullptr, 0), rank);
  }
  EXPECT_THAT(TracesOf(name), IsEmpty());
  close(ends[0]);
  close(ends[1]);
}

TEST(ShmGroup, RefusesArgumentsWithASentence) {
  const auto message = [](const CommunicatorOr& result) {
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return MessageOf(result.status());
  };
  EXPECT_THAT(message(CreateShmGroup("", 2, Options())), HasSubstr("1 to 80 bytes, not 0"));
  EXPECT_THAT(message(CreateShmGroup(std::string(81, 'x'), 2, Options())), HasSubstr("not 81"));
  EXPECT_THAT(message(CreateShmGroup("g", 0, Options())), HasSubstr("1 to 64 ranks, not 0"));
  EXPECT_THAT(message(CreateShmGroup("g", 65, Options())), HasSubstr("not 65"));
  EXPECT_THAT(message(AttachShmGroup("g", 2, 2, Options())), HasSubstr("rank 2 cannot attach"));
  EXPECT_THAT(message(AttachShmGroup("g", 0, 2, Options())), HasSubstr("rank 0 cannot attach"));
  ShmOptions odd = Options();
  odd.arena.slot_bytes += 1;
  EXPECT_THAT(message(CreateShmGroup("g", 2, odd)), HasSubstr("slot_bytes is a multiple"));
}

}  // namespace
}  // namespace facet
