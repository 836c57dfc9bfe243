// Forming a group over TCP among strangers, and what a poor network or a bad peer does to it.

#include "kernels/collectives/tcp.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <atomic>
#include <bit>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "tests/collectives/fault_proxy.h"
#include "tests/collectives/group_harness.h"
#include "tests/collectives/tree_oracle.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;
using CommunicatorOr = absl::StatusOr<std::unique_ptr<Communicator>>;

constexpr milliseconds kLong(60'000);
constexpr milliseconds kShort(100);

TcpOptions Options(milliseconds attach = kLong) {
  TcpOptions options;
  options.attach_timeout = attach;
  options.mesh.lost_link = kLong;  // a slow host is no lost link
  return options;
}

// The ranks of a group, each joining on a thread of its own.
class Joining {
 public:
  explicit Joining(int world) : ports_(TakeTcpPorts(world)), results_(world), threads_(world) {}
  ~Joining() { Await(); }

  TcpGroup& group() { return ports_.group; }
  void Start(int rank, const TcpOptions& options = Options()) {
    Start(rank, ports_.group, options);
  }
  void Start(int rank, TcpGroup group, const TcpOptions& options) {
    group.rank = rank;
    threads_[rank] = std::thread([this, rank, group, options] {
      results_[rank] = JoinTcpGroup(std::move(ports_.listeners[rank]), group, options);
    });
  }
  CommunicatorOr& Result(int rank) {
    if (threads_[rank].joinable()) threads_[rank].join();
    return results_[rank];
  }
  void Await() {
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

 private:
  TcpPorts ports_;
  std::vector<CommunicatorOr> results_;
  std::vector<std::thread> threads_;
};

// Runs `work` on every rank at once.
std::vector<absl::Status> RunAll(Joining& joining, const RankWork& work) {
  std::vector<absl::Status> statuses(static_cast<size_t>(joining.group().world));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < joining.group().world; ++rank) {
    threads.emplace_back([&, rank] {
      CommunicatorOr& comm = joining.Result(rank);
      statuses[rank] = comm.ok() ? work(**comm) : comm.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return statuses;
}

absl::Status Barrier(Communicator& comm) { return comm.Barrier(); }

absl::Status Reduce(Communicator& comm, int64_t elements) {
  const SumTree tree(8, EvenRanks(8, comm.world()));
  const std::vector<float> roots = NaiveRoots(tree, comm.rank(), elements);
  std::vector<float> out(static_cast<size_t>(elements));
  FACET_RETURN_IF_ERROR(comm.AllReduceSum(tree, roots.data(), elements, out.data()));
  return out == NaiveTreeSums(8, elements) ? absl::OkStatus() : Internal("other sums");
}

// A blocking connection to `address`, once somebody listens there.
UniqueFd ConnectTo(const std::string& address) {
  const auto resolved = ResolveAddress(address);
  FACET_CHECK(resolved.ok());
  while (true) {
    UniqueFd fd(socket(resolved->family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
    if (connect(fd.get(), resolved->get(), resolved->length) == 0) return fd;
    std::this_thread::yield();
  }
}

template <typename Bytes>
void Say(const UniqueFd& fd, const Bytes& bytes) {
  FACET_CHECK(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
              static_cast<ssize_t>(bytes.size()));
}

// Bytes that come until the other side closes.
size_t BytesUntilEnd(const UniqueFd& fd) {
  size_t all = 0;
  char space[256];
  for (ssize_t bytes; (bytes = recv(fd.get(), space, sizeof(space), 0)) > 0;) {
    all += static_cast<size_t>(bytes);
  }
  return all;
}

TEST(TcpGroup, ForAllThatJoinInAnyOrder) {
  Joining joining(4);
  for (const int rank : {3, 1, 2, 0}) joining.Start(rank);
  EXPECT_ALL_OK(RunAll(joining, Barrier));
  EXPECT_EQ((*joining.Result(2))->rank(), 2);
  EXPECT_EQ((*joining.Result(2))->world(), 4);
}

TEST(TcpGroup, OfOneNeedsNobody) {
  Joining joining(1);
  joining.Start(0, Options(milliseconds(0)));
  EXPECT_ALL_OK(RunAll(joining, [](Communicator& comm) { return Reduce(comm, 1'000); }));
}

TEST(TcpGroup, MissingRanksAreNamed) {
  Joining joining(3);  // rank 0 has its port and does not listen
  joining.Start(1, Options(milliseconds(300)));
  const absl::Status status = joining.Result(1).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(status),
              AllOf(HasSubstr("rank 1 has no connection to rank(s) 0, 2"),
                    HasSubstr("rank 0 at 127.0.0.1:"), HasSubstr("Connection refused"),
                    HasSubstr("rank 2 has not called")));
}

TEST(TcpGroup, RefusesArgumentsWithASentence) {
  const auto message = [](const std::function<void(TcpGroup*)>& spoil) {
    TcpPorts ports = TakeTcpPorts(2);
    spoil(&ports.group);
    const auto joined = JoinTcpGroup(std::move(ports.listeners[0]), ports.group, Options());
    EXPECT_EQ(joined.status().code(), absl::StatusCode::kInvalidArgument);
    return MessageOf(joined.status());
  };
  EXPECT_THAT(message([](TcpGroup* group) { group->world = 65; }), HasSubstr("1 to 64 ranks"));
  EXPECT_THAT(message([](TcpGroup* group) { group->rank = 2; }), HasSubstr("rank 2 is not in"));
  EXPECT_THAT(message([](TcpGroup* group) { group->addresses.pop_back(); }),
              HasSubstr("1 addresses for 2 ranks"));
  EXPECT_THAT(message([](TcpGroup* group) {
                group->rank = 1;
                group->addresses[0] = "nonsense";
              }),
              HasSubstr("'nonsense' is not an address"));
}

TEST(TcpListener, APortInUseIsAnError) {
  auto first = TcpListener::Bind("127.0.0.1:0");
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(first->Listen(1).ok());
  const auto second = TcpListener::Bind(fmt::format("127.0.0.1:{}", first->port()));
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(second.status()), HasSubstr("Address already in use"));
}

// Strangers of every kind are at rank 0's port before and while the others come.
TEST(TcpGroup, StrangersDoNotDisturb) {
  Joining joining(3);
  TcpOptions options = Options();
  options.mesh.visitors_max = 4;
  joining.Start(0, options);
  const std::string address = joining.group().addresses[0];
  const auto hello = EncodeHello({1, 0, 3, joining.group().key.caller});

  std::vector<UniqueFd> silent;
  for (int i = 0; i < 20; ++i) silent.push_back(ConnectTo(address));  // more than there is room for
  const UniqueFd half = ConnectTo(address);
  Say(half, std::span(hello).first(20));
  { const UniqueFd gone = ConnectTo(address); }

  const UniqueFd junk = ConnectTo(address);
  Say(junk, std::string(1'000, 'x'));
  EXPECT_EQ(BytesUntilEnd(junk), 0u);  // is told nothing
  TcpNonce other = joining.group().key.caller;
  other[15] ^= std::byte{1};
  for (const TcpHello& wrong :
       {TcpHello{1, 0, 3, other}, TcpHello{2, 1, 3, joining.group().key.caller},
        TcpHello{1, 0, 2, joining.group().key.caller}}) {
    const UniqueFd stranger = ConnectTo(address);
    Say(stranger, EncodeHello(wrong));
    EXPECT_EQ(BytesUntilEnd(stranger), 0u);
  }
  joining.Start(1, options);
  joining.Start(2, options);
  EXPECT_ALL_OK(RunAll(joining, Barrier));
}

TEST(TcpGroup, ASilentVisitorIsSentAway) {
  Joining joining(2);
  TcpOptions options = Options();
  options.mesh.hello_timeout = kShort;
  joining.Start(0, options);
  const UniqueFd silent = ConnectTo(joining.group().addresses[0]);
  EXPECT_EQ(BytesUntilEnd(silent), 0u);  // comes back before the group is whole
  joining.Start(1);
  EXPECT_ALL_OK(RunAll(joining, Barrier));
}

TEST(TcpGroup, WhoAnswersInAnothersPlaceIsNotBelieved) {
  Joining joining(2);
  auto impostor = TcpListener::Bind("127.0.0.1:0");
  ASSERT_TRUE(impostor.ok());
  ASSERT_TRUE(impostor->Listen(1).ok());
  TcpGroup group = joining.group();
  group.addresses[0] = fmt::format("127.0.0.1:{}", impostor->port());
  joining.Start(1, group, Options(milliseconds(500)));
  pollfd called = {impostor->fd(), POLLIN, 0};
  ASSERT_EQ(poll(&called, 1, -1), 1);
  const UniqueFd fd(accept4(impostor->fd(), nullptr, nullptr, SOCK_CLOEXEC));
  Say(fd, EncodeWelcome(group.key.caller));  // what it has just heard
  EXPECT_EQ(joining.Result(1).status().code(), absl::StatusCode::kDeadlineExceeded);
}

// Rank 1 of 2 by hand; rank 0 is a real one.
class HandMadePeer : public ::testing::Test {
 protected:
  HandMadePeer() : joining_(2) {
    joining_.Start(0);
    fd_ = ConnectTo(joining_.group().addresses[0]);
    Say(fd_, EncodeHello({1, 0, 2, joining_.group().key.caller}));
    std::array<std::byte, kWelcomeBytes> welcome;
    FACET_CHECK(recv(fd_.get(), welcome.data(), welcome.size(), MSG_WAITALL) == kWelcomeBytes);
    FACET_CHECK(SameNonce(*ParseWelcome(welcome), joining_.group().key.host));
    Say(fd_, Frame(Operation::kBarrier, 0));
    FACET_CHECK(joining_.Result(0).ok());
    rank0().SetStep(7);
    rank0().SetTimeout(kLong);
  }

  static std::array<std::byte, kFrameHeaderBytes> Frame(Operation operation, uint64_t step,
                                                        uint64_t size = 0, uint32_t bytes = 0) {
    return EncodeFrameHeader({{step, size, 0, static_cast<uint32_t>(operation)}, bytes});
  }
  Communicator& rank0() { return **joining_.Result(0); }
  // The call's failure, which later calls repeat.
  absl::Status FailureOf(const std::function<absl::Status(Communicator&)>& call) {
    const absl::Status status = call(rank0());
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(rank0().Barrier(), status);
    return status;
  }
  absl::Status GatheredFrom() {
    return FailureOf([](Communicator& comm) {
      std::vector<std::vector<std::byte>> out;
      return comm.AllGatherBytes({}, &out);
    });
  }

  Joining joining_;
  UniqueFd fd_;
};

TEST_F(HandMadePeer, ThatStopsInsideAFrameIsNamedAtTheDeadline) {
  rank0().SetTimeout(kShort);
  Say(fd_, Frame(Operation::kAllGatherBytes, 7, 100, 100));
  Say(fd_, std::string(99, 'x'));
  EXPECT_THAT(MessageOf(GatheredFrom()), HasSubstr("rank 1 did not arrive at all-gather"));
}

TEST_F(HandMadePeer, ThatReadsNothingIsNamedAtTheDeadline) {
  rank0().SetTimeout(kShort);
  const absl::Status status = FailureOf([](Communicator& comm) {
    std::vector<std::byte> message(100 << 20);
    return comm.Broadcast(&message);
  });
  EXPECT_THAT(MessageOf(status), HasSubstr("rank 1 did not arrive at broadcast of step 7"));
}

TEST_F(HandMadePeer, ThatSendsNoFrameEndsTheEpoch) {
  Say(fd_, std::string(64, 'x'));
  EXPECT_THAT(MessageOf(FailureOf(Barrier)), HasSubstr("rank 1 is gone: it sent no frame"));
}

TEST_F(HandMadePeer, OfAnotherStepEndsTheEpoch) {
  Say(fd_, Frame(Operation::kBarrier, 8));
  EXPECT_THAT(MessageOf(FailureOf(Barrier)),
              HasSubstr("rank 1 is in barrier of step 8, rank 0 in barrier of step 7"));
}

TEST_F(HandMadePeer, WithAWrongLengthEndsTheEpoch) {
  Say(fd_, Frame(Operation::kBarrier, 7, 0, 4));
  EXPECT_THAT(MessageOf(FailureOf(Barrier)),
              HasSubstr("rank 1 sent a frame of 4 bytes in barrier of step 7"));
}

TEST_F(HandMadePeer, WithALengthOfItsOwnEndsTheEpoch) {
  Say(fd_, Frame(Operation::kAllGatherBytes, 7, 100, 99));
  EXPECT_THAT(MessageOf(GatheredFrom()), HasSubstr("rank 1 sent a frame of 99 bytes"));
}

TEST_F(HandMadePeer, WithTooLongAMessageEndsTheEpochBeforeMemoryIsTaken) {
  Say(fd_, Frame(Operation::kAllGatherBytes, 7, uint64_t{1} << 40, 0xffffffff));
  EXPECT_EQ(GatheredFrom().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(HandMadePeer, ThatSaysWhyItFailsIsBelieved) {
  Say(fd_, EncodeFailure(absl::StatusCode::kInternal, "rank 1 has doubts"));
  const absl::Status status = FailureOf(Barrier);
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(MessageOf(status), "rank 1 has doubts");
}

TEST_F(HandMadePeer, HearsWhyTheOtherFails) {
  rank0().Abort();
  std::string heard(512, 0);
  while (heard.find("rank 0 aborted the group") == std::string::npos) {
    const ssize_t bytes = recv(fd_.get(), heard.data(), heard.size(), 0);
    ASSERT_GT(bytes, 0);
  }
}

TEST_F(HandMadePeer, ThatIsSilentCostsNoProcessorTime) {
  rank0().SetTimeout(milliseconds(300));
  const auto cpu_s = [] {
    rusage usage = {};
    getrusage(RUSAGE_THREAD, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  };
  const double before_s = cpu_s();
  EXPECT_FALSE(rank0().Barrier().ok());
  EXPECT_LT(cpu_s() - before_s, 0.03);
}

TEST(TcpGroup, RanksThatAllSendMuchAtOnceDoNotBlock) {
  EXPECT_ALL_OK(RunTcpThreads(3, [](Communicator& comm) -> absl::Status {
    comm.SetTimeout(kLong);
    const std::vector<std::byte> mine(20 << 20, static_cast<std::byte>(comm.rank()));
    std::vector<std::vector<std::byte>> out;
    FACET_RETURN_IF_ERROR(comm.AllGatherBytes(mine, &out));
    for (int rank = 0; rank < 3; ++rank) {
      if (out[rank] != std::vector<std::byte>(20 << 20, static_cast<std::byte>(rank))) {
        return Internal("other bytes of rank {}", rank);
      }
    }
    return absl::OkStatus();
  }));
}

// Two ranks with a poor network between them.
class PoorNetwork : public ::testing::Test {
 protected:
  PoorNetwork() : joining_(2), proxy_(joining_.group().addresses[0]) {}
  void Join() {
    joining_.Start(0);
    TcpGroup through = joining_.group();
    through.addresses[0] = proxy_.address();
    joining_.Start(1, through, Options());
    joining_.Await();
  }
  // Reduces until a failure.
  static absl::Status ReduceOn(Communicator& comm) {
    absl::Status status;
    for (uint64_t step = 1; status.ok(); ++step) {
      comm.SetStep(step);
      status = Reduce(comm, 3'000);
    }
    return status;
  }

  Joining joining_;
  FaultProxy proxy_;
};

TEST_F(PoorNetwork, ThatIsSlowChangesNoBits) {
  proxy_.Delay(milliseconds(2));
  Join();
  EXPECT_ALL_OK(RunAll(joining_, [](Communicator& comm) { return Reduce(comm, 20'001); }));
}

TEST_F(PoorNetwork, ThatIsNarrowChangesNoBits) {
  proxy_.Throttle(777);
  Join();
  EXPECT_ALL_OK(RunAll(joining_, [](Communicator& comm) { return Reduce(comm, 20'001); }));
}

TEST_F(PoorNetwork, ThatIsCutIsNoticedByBothEnds) {
  Join();
  const size_t before = proxy_.bytes();
  std::atomic<bool> over = false;
  std::thread spoiler([&] {  // once they reduce
    while (proxy_.bytes() < before + 100'000 && !over) std::this_thread::yield();
    proxy_.Cut();
  });
  const auto statuses = RunAll(joining_, [](Communicator& comm) {
    comm.SetTimeout(kLong);
    return ReduceOn(comm);
  });
  over = true;
  spoiler.join();
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(MessageOf(statuses[rank]), HasSubstr(fmt::format("rank {} is gone", 1 - rank)));
  }
}

TEST_F(PoorNetwork, ThatStallsIsNoticedAtTheDeadline) {
  Join();
  // A rank that is slow while the network is sound must not be taken for one behind a stall.
  EXPECT_ALL_OK(RunAll(joining_, [](Communicator& comm) {
    comm.SetTimeout(kLong);
    return Reduce(comm, 3'000);
  }));
  proxy_.Stall();
  const auto statuses = RunAll(joining_, [](Communicator& comm) {
    comm.SetTimeout(kShort * 5);
    return ReduceOn(comm);
  });
  for (int rank = 0; rank < 2; ++rank) {
    EXPECT_EQ(statuses[rank].code(), absl::StatusCode::kDeadlineExceeded);
    EXPECT_THAT(MessageOf(statuses[rank]),
                HasSubstr(fmt::format("rank {} did not arrive", 1 - rank)));
  }
}

}  // namespace
}  // namespace facet
