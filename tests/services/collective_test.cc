#include "shard_worker/service/collective.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/status.h"
#include "shard_worker/service/host_name.h"

namespace facet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

v1::RankMessage::Hello HelloFrom(const std::string& host, const std::string& address) {
  v1::RankMessage::Hello hello;
  hello.set_host(host);
  hello.set_collective_address(address);
  return hello;
}

std::string AddressOf(const CollectiveOptions& options, std::string_view leader) {
  const auto seat = CollectiveSeat::Take(options, leader);
  EXPECT_TRUE(seat.ok()) << seat.status();
  v1::RankMessage::Hello hello;
  if (seat.ok()) seat->Describe(&hello);
  return hello.collective_address();
}

TEST(HostName, OfAPeerIsWhatSocketsUnderstand) {
  EXPECT_EQ(HostOfPeer("ipv4:10.0.0.5:4711"), "10.0.0.5");
  EXPECT_EQ(HostOfPeer("ipv6:%5Bfd00::2%5D:4711"), "[fd00::2]");
  EXPECT_EQ(HostOfPeer("ipv6:[::1]:80"), "[::1]");
  EXPECT_EQ(HostOfPeer("dns:///worker-0.workers:8480"), "worker-0.workers");
  EXPECT_EQ(HostOfPeer("host-a:8480"), "host-a");
  EXPECT_EQ(HostOfPeer("unix:/tmp/group.sock"), "127.0.0.1");
  EXPECT_EQ(HostOfPeer("unix-abstract:%00x"), "127.0.0.1");
}

TEST(HostName, TellsThisHostFromOthers) {
  EXPECT_FALSE(HostIdentity().empty());
  EXPECT_EQ(HostIdentity(), HostIdentity());
  EXPECT_TRUE(IsOwnAddress("127.0.0.1"));
  EXPECT_FALSE(IsOwnAddress("192.0.2.77"));  // of a range for examples
}

TEST(CollectiveSeat, SaysWhereItsRankIsReached) {
  EXPECT_THAT(AddressOf({}, "unix:/tmp/group.sock"), StartsWith(":"));
  EXPECT_THAT(AddressOf({}, "10.0.0.5:8480"), StartsWith(":"));
  EXPECT_THAT(AddressOf({.listen = "127.0.0.1:0"}, "10.0.0.5:8480"), StartsWith("127.0.0.1:"));
  EXPECT_THAT(AddressOf({.address = "pod-3"}, "10.0.0.5:8480"), StartsWith("pod-3:"));
  EXPECT_THAT(AddressOf({.address = "[fd00::3]"}, "10.0.0.5:8480"), StartsWith("[fd00::3]:"));
  EXPECT_EQ(AddressOf({.address = "pod-3:99"}, "10.0.0.5:8480"), "pod-3:99");
  EXPECT_EQ(AddressOf({.address = "[fd00::3]:99"}, "10.0.0.5:8480"), "[fd00::3]:99");
}

TEST(CollectiveSeat, NamesItsFlagIfItCannotListen) {
  const auto seat = CollectiveSeat::Take({.listen = "192.0.2.77:0"}, "10.0.0.5:8480");
  EXPECT_THAT(MessageOf(seat.status()),
              AllOf(HasSubstr("--collective_listen"), HasSubstr("192.0.2.77:0")));
}

TEST(NewCollective, IsSharedMemoryWhereAllRanksCanShareIt) {
  const auto here = HelloFrom(HostIdentity(), ":1");
  const auto start = NewCollective(CollectiveKind::kAuto, here,
                                   {{here, "unix:/tmp/group.sock"}, {here, "ipv4:127.0.0.1:50"}});
  ASSERT_TRUE(start.ok()) << start.status();
  EXPECT_THAT(start->collective(), StartsWith("shm:"));
}

TEST(NewCollective, IsTcpIfOneRankIsElsewhere) {
  const auto here = HelloFrom(HostIdentity(), ":1");
  const RankPlace near = {here, "ipv4:127.0.0.1:50"};
  for (const RankPlace& elsewhere :
       {RankPlace{HelloFrom("another", ":2"), "ipv4:192.0.2.77:50"},
        RankPlace{HelloFrom("", ":2"), "ipv4:127.0.0.1:50"},
        // A clone of this machine says the same of itself.
        RankPlace{HelloFrom(HostIdentity(), ":2"), "ipv4:192.0.2.77:50"}}) {
    const auto start = NewCollective(CollectiveKind::kAuto, here, {elsewhere, near});
    ASSERT_TRUE(start.ok()) << start.status();
    EXPECT_EQ(start->collective(), "tcp");
    EXPECT_EQ(start->key().size(), 32u);
    const auto refused = NewCollective(CollectiveKind::kShm, here, {elsewhere, near});
    EXPECT_THAT(MessageOf(refused.status()),
                HasSubstr("--collective=shm: rank(s) 1 cannot share memory"));
  }
}

v1::RankMessage::Hello HelloWithGpu(int nccl_version, const std::string& gpu) {
  v1::RankMessage::Hello hello = HelloFrom(HostIdentity(), ":1");
  hello.set_nccl_version(nccl_version);
  hello.set_gpu(gpu);
  return hello;
}

TEST(NewCollective, IsNcclBesideTheHostsWhereAllRanksHaveIt) {
  const auto leader = HelloWithGpu(22809, "a");
  const std::vector<RankPlace> others = {{HelloWithGpu(22809, "b"), "ipv4:127.0.0.1:50"}};
  for (const CollectiveKind kind : {CollectiveKind::kAuto, CollectiveKind::kNccl}) {
    const auto start = NewCollective(kind, leader, others);
    ASSERT_TRUE(start.ok()) << start.status();
    EXPECT_TRUE(start->nccl());
    EXPECT_THAT(start->collective(), StartsWith("shm:"));
  }
  for (const CollectiveKind kind : {CollectiveKind::kShm, CollectiveKind::kTcp}) {
    EXPECT_FALSE(NewCollective(kind, leader, others)->nccl());
  }
}

TEST(NewCollective, IsNcclOnlyWhereNothingIsInTheWay) {
  const auto leader = HelloWithGpu(22809, "a");
  auto without = HelloWithGpu(0, "");
  const auto obstacle = [&](const v1::RankMessage::Hello& other) {
    const std::vector<RankPlace> others = {{other, "ipv4:127.0.0.1:50"}};
    const auto start = NewCollective(CollectiveKind::kAuto, leader, others);
    EXPECT_TRUE(start.ok() && !start->nccl());
    const auto refused = NewCollective(CollectiveKind::kNccl, leader, others);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(MessageOf(refused.status()), HasSubstr(NcclObstacle(leader, others)));
    return MessageOf(refused.status());
  };
  EXPECT_THAT(obstacle(without), HasSubstr("rank 1 has no NCCL: its device computes in host"));
  without.set_nccl_missing("there is no libnccl.so.2");
  EXPECT_THAT(obstacle(without), HasSubstr("rank 1 has no NCCL: there is no libnccl.so.2"));
  EXPECT_THAT(obstacle(HelloWithGpu(22809, "a")), HasSubstr("ranks 0 and 1 are on one GPU"));
  EXPECT_THAT(obstacle(HelloWithGpu(22704, "b")), HasSubstr("rank 1 has NCCL 22704, rank 0 has"));
}

// Adds nothing to a rank's communicator but that it was asked to.
class FakeDevice final : public DeviceCollectives {
 public:
  explicit FakeDevice(absl::StatusOr<DeviceSeat> seat) : seat_(std::move(seat)) {}
  absl::StatusOr<DeviceSeat> Seat() override { return seat_; }
  absl::StatusOr<std::unique_ptr<Communicator>> Join(std::unique_ptr<Communicator> host) override {
    ++joined;
    return host;
  }

  int joined = 0;

 private:
  const absl::StatusOr<DeviceSeat> seat_;
};

TEST(DescribeDevice, SaysWhatItHasOrWhatIsMissing) {
  v1::RankMessage::Hello hello;
  DescribeDevice(nullptr, &hello);
  EXPECT_EQ(hello.ByteSizeLong(), 0u);
  FakeDevice device(DeviceSeat{22809, "GPU-7"});
  DescribeDevice(&device, &hello);
  EXPECT_EQ(hello.nccl_version(), 22809);
  EXPECT_EQ(hello.gpu(), "GPU-7");
  FakeDevice missing(FailedPrecondition("there is no libnccl.so.2"));
  v1::RankMessage::Hello other;
  DescribeDevice(&missing, &other);
  EXPECT_EQ(other.nccl_version(), 0);
  EXPECT_EQ(other.nccl_missing(), "there is no libnccl.so.2");
}

TEST(AttachCollective, LetsTheDevicesJoinWhereTheyAreTo) {
  const auto joined = [](bool nccl, int world) {
    FakeDevice device(DeviceSeat{22809, "a"});
    v1::GroupMessage::Start start;
    start.set_collective("none");
    start.set_nccl(nccl);
    auto seat = CollectiveSeat::Take({}, "unix:/tmp/group.sock");
    EXPECT_TRUE(AttachCollective(start, *std::move(seat), 0, world, &device).ok() == (world == 1));
    return device.joined;
  };
  EXPECT_EQ(joined(false, 1), 1);  // alone it needs no NCCL, and nobody to find
  EXPECT_EQ(joined(true, 2), 0);   // the hosts did not find each other
  v1::GroupMessage::Start start;
  start.set_nccl(true);
  auto seat = CollectiveSeat::Take({}, "unix:/tmp/group.sock");
  EXPECT_THAT(MessageOf(AttachCollective(start, *std::move(seat), 0, 1, nullptr).status()),
              HasSubstr("has no device that could use nccl"));
}

TEST(NewCollective, TellsEverybodysAddress) {
  const auto start = NewCollective(
      CollectiveKind::kAuto, HelloFrom("a", ":1"),
      {{HelloFrom("b", ":2"), "ipv4:10.0.0.6:50"}, {HelloFrom("c", "pod-3:3"), "ipv4:10.0.0.7:1"}});
  ASSERT_TRUE(start.ok()) << start.status();
  EXPECT_THAT(start->addresses(), ElementsAre(":1", "10.0.0.6:2", "pod-3:3"));
}

TEST(NewCollective, NamesARankWithoutAPort) {
  const auto start = NewCollective(CollectiveKind::kAuto, HelloFrom("a", ":1"),
                                   {{HelloFrom("b", ""), "ipv4:10.0.0.6:50"}});
  EXPECT_THAT(MessageOf(start.status()), HasSubstr("rank 1 has no port for tcp"));
}

// Rank 1 came to the leader over loopback; rank 2, elsewhere, is to call it.
TEST(NewCollective, NamesARankThatOthersWouldNotFind) {
  const auto here = HelloFrom(HostIdentity(), ":1");
  const auto start =
      NewCollective(CollectiveKind::kAuto, here,
                    {{here, "ipv4:127.0.0.1:50"}, {HelloFrom("c", ":3"), "ipv4:10.0.0.7:1"}});
  EXPECT_THAT(MessageOf(start.status()), AllOf(HasSubstr("rank 1 is known as 127.0.0.1:1 only"),
                                               HasSubstr("--collective_address")));
}

TEST(AttachCollective, OverTcpFindsTheLeaderWhereItsStreamDid) {
  std::vector<CollectiveSeat> seats;
  std::vector<v1::RankMessage::Hello> hellos(3);
  for (v1::RankMessage::Hello& hello : hellos) {
    auto seat = CollectiveSeat::Take({}, "unix:/tmp/group.sock");
    ASSERT_TRUE(seat.ok()) << seat.status();
    seat->Describe(&hello);
    seats.push_back(*std::move(seat));
  }
  const auto start =
      NewCollective(CollectiveKind::kTcp, hellos[0], {{hellos[1], "unix:"}, {hellos[2], "unix:"}});
  ASSERT_TRUE(start.ok()) << start.status();
  std::vector<absl::Status> statuses(3);
  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 3; ++rank) {
    ranks.emplace_back([&, rank] {
      auto comm = AttachCollective(*start, std::move(seats[rank]), rank, 3, nullptr);
      statuses[rank] = comm.ok() ? (*comm)->Barrier() : comm.status();
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

TEST(AttachCollective, RefusesWhatItDoesNotKnow) {
  v1::GroupMessage::Start start;
  start.set_collective("pigeons");
  auto seat = CollectiveSeat::Take({}, "unix:/tmp/group.sock");
  ASSERT_TRUE(seat.ok()) << seat.status();
  EXPECT_EQ(AttachCollective(start, *std::move(seat), 1, 2, nullptr).status().code(),
            absl::StatusCode::kUnimplemented);
  start.set_collective("tcp");
  start.set_key("short");
  seat = CollectiveSeat::Take({}, "unix:/tmp/group.sock");
  EXPECT_THAT(MessageOf(AttachCollective(start, *std::move(seat), 1, 2, nullptr).status()),
              HasSubstr("a key of 5 bytes"));
}

}  // namespace
}  // namespace facet
