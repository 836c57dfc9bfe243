#include "shard_worker/service/collective.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <utility>

#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/collectives/shm.h"
#include "kernels/collectives/tcp.h"
#include "shard_worker/service/host_name.h"

namespace facet {
namespace {

constexpr std::string_view kShm = "shm:";
constexpr std::string_view kTcp = "tcp";
// All ranks are ready when they are told to attach: who is not here soon has died.
constexpr std::chrono::milliseconds kShmAttachTimeout{2000};
constexpr std::chrono::milliseconds kTcpAttachTimeout{5000};  // a call may be lost and said again

uint64_t RandomWord() {
  std::random_device random;
  return (uint64_t{random()} << 32) | random();
}

std::string RandomKey() {
  std::string key;
  while (key.size() < sizeof(TcpKey)) {
    const uint64_t word = RandomWord();
    key.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  return key;
}

std::string HostPart(std::string_view address) {
  return std::string(address.substr(0, address.rfind(':')));
}

// "name" and "[::1]" lack a port, "name:80" and "[::1]:80" have one.
bool HasPort(std::string_view address) {
  const size_t colon = address.rfind(':');
  return colon != address.npos && address.find(']', colon) == address.npos;
}

absl::StatusOr<TcpListener> Listen(const CollectiveOptions& options,
                                   const std::string& leader_host) {
  if (!options.listen.empty()) return TcpListener::Bind(options.listen);
  if (IsLoopback(leader_host)) return TcpListener::Bind(leader_host + ":0");
  absl::StatusOr<TcpListener> both = TcpListener::Bind("[::]:0");
  return both.ok() ? std::move(both) : TcpListener::Bind("0.0.0.0:0");  // no IPv6 here
}

bool CanShareMemory(const v1::RankMessage::Hello& leader, const RankPlace& place) {
  return !leader.host().empty() && place.hello.host() == leader.host() &&
         IsOwnAddress(HostOfPeer(place.peer));
}

std::vector<int> RanksElsewhere(const v1::RankMessage::Hello& leader,
                                const std::vector<RankPlace>& others) {
  std::vector<int> elsewhere;
  for (size_t i = 0; i < others.size(); ++i) {
    if (!CanShareMemory(leader, others[i])) elsewhere.push_back(static_cast<int>(i) + 1);
  }
  return elsewhere;
}

v1::GroupMessage::Start NewShm() {
  v1::GroupMessage::Start start;
  start.set_nonce(RandomWord());
  start.set_collective(fmt::format("{}facet-{}-{:016x}", kShm, getpid(), start.nonce()));
  return start;
}

std::string AddressOf(const RankPlace& place) {
  const std::string& address = place.hello.collective_address();
  return address.starts_with(':') ? HostOfPeer(place.peer) + address : address;
}

absl::Status CheckHasPort(int rank, const v1::RankMessage::Hello& hello) {
  if (!hello.collective_address().empty()) return absl::OkStatus();
  return FailedPrecondition(
      "collective: rank {} has no port for tcp; --collective_listen would say why", rank);
}

absl::StatusOr<v1::GroupMessage::Start> NewTcp(const v1::RankMessage::Hello& leader,
                                               const std::vector<RankPlace>& others) {
  FACET_RETURN_IF_ERROR(CheckHasPort(0, leader));
  for (size_t i = 0; i < others.size(); ++i) {
    FACET_RETURN_IF_ERROR(CheckHasPort(static_cast<int>(i) + 1, others[i].hello));
  }
  v1::GroupMessage::Start start;
  start.set_collective(std::string(kTcp));
  start.set_key(RandomKey());
  start.add_addresses(leader.collective_address());
  for (const RankPlace& place : others) start.add_addresses(AddressOf(place));
  // A rank is called by those above it.
  for (int rank = 1; rank + 1 < start.addresses_size(); ++rank) {
    if (!IsLoopback(HostPart(start.addresses(rank)))) continue;
    for (int caller = rank + 1; caller < start.addresses_size(); ++caller) {
      if (CanShareMemory(leader, others[static_cast<size_t>(caller) - 1])) continue;
      return FailedPrecondition(
          "collective: rank {} is known as {} only, where rank {}, on another host, would not "
          "find it; start it with --collective_address",
          rank, start.addresses(rank), caller);
    }
  }
  return start;
}

// What is wrong with one rank, given the ranks before it.
std::string NcclObstacleOf(int rank, const std::vector<const v1::RankMessage::Hello*>& hellos) {
  const v1::RankMessage::Hello& hello = *hellos[static_cast<size_t>(rank)];
  if (hello.nccl_version() == 0) {
    return fmt::format(
        "rank {} has no NCCL: {}", rank,
        hello.nccl_missing().empty() ? "its device computes in host memory" : hello.nccl_missing());
  }
  for (int other = 0; other < rank; ++other) {
    const v1::RankMessage::Hello& before = *hellos[static_cast<size_t>(other)];
    if (before.nccl_version() != hello.nccl_version()) {
      return fmt::format("rank {} has NCCL {}, rank {} has {}", rank, hello.nccl_version(), other,
                         before.nccl_version());
    }
    if (before.gpu() == hello.gpu()) {
      return fmt::format("ranks {} and {} are on one GPU", other, rank);
    }
  }
  return {};
}

absl::StatusOr<std::unique_ptr<Communicator>> AttachShm(const v1::GroupMessage::Start& start,
                                                        int rank, int world) {
  const std::string_view name = std::string_view(start.collective()).substr(kShm.size());
  ShmOptions options;
  options.nonce = start.nonce();
  options.attach_timeout = kShmAttachTimeout;
  return rank == 0 ? CreateShmGroup(name, world, options)
                   : AttachShmGroup(name, rank, world, options);
}

absl::StatusOr<std::unique_ptr<Communicator>> AttachTcp(const v1::GroupMessage::Start& start,
                                                        TcpListener listener,
                                                        const std::string& leader_host, int rank,
                                                        int world) {
  TcpGroup group;
  group.rank = rank;
  group.world = world;
  group.addresses.assign(start.addresses().begin(), start.addresses().end());
  if (start.key().size() != sizeof(group.key) || start.addresses_size() != world) {
    return InvalidArgument("collective: {} addresses and a key of {} bytes for {} ranks",
                           start.addresses_size(), start.key().size(), world);
  }
  std::memcpy(&group.key, start.key().data(), sizeof(group.key));
  if (group.addresses[0].starts_with(':')) group.addresses[0].insert(0, leader_host);
  TcpOptions options;
  options.attach_timeout = kTcpAttachTimeout;
  return JoinTcpGroup(std::move(listener), group, options);
}

// The hosts' part. A group of one has nobody to find.
absl::StatusOr<std::unique_ptr<Communicator>> AttachHosts(const v1::GroupMessage::Start& start,
                                                          std::optional<TcpListener> listener,
                                                          const std::string& leader_host, int rank,
                                                          int world) {
  if (world == 1) return std::move(MakeLocalGroup(1).front());
  if (start.collective().starts_with(kShm)) return AttachShm(start, rank, world);
  if (start.collective() == kTcp) {
    if (!listener) return FailedPrecondition("collective: this rank has no port for tcp");
    return AttachTcp(start, *std::move(listener), leader_host, rank, world);
  }
  return Unimplemented("collective: this worker does not know '{}'", start.collective());
}

}  // namespace

absl::StatusOr<CollectiveSeat> CollectiveSeat::Take(const CollectiveOptions& options,
                                                    std::string_view leader) {
  std::string leader_host = HostOfPeer(leader);
  if (leader_host == "localhost") leader_host = "127.0.0.1";  // of its two addresses, one for all
  CollectiveSeat seat;
  absl::StatusOr<TcpListener> listener = Listen(options, leader_host);
  seat.leader_host_ = std::move(leader_host);
  if (!listener.ok()) {
    if (options.listen.empty()) return seat;
    return Annotate(listener.status(), "--collective_listen");
  }
  seat.listener_ = *std::move(listener);
  std::string host = options.address;
  if (host.empty() && IsOneHost(HostPart(options.listen))) host = HostPart(options.listen);
  seat.address_ = HasPort(host) ? host : fmt::format("{}:{}", host, seat.listener_->port());
  return seat;
}

void CollectiveSeat::Describe(v1::RankMessage::Hello* hello) const {
  hello->set_host(HostIdentity());
  hello->set_collective_address(address_);
}

void DescribeDevice(DeviceCollectives* device, v1::RankMessage::Hello* hello) {
  if (device == nullptr) return;
  const absl::StatusOr<DeviceSeat> seat = device->Seat();
  if (!seat.ok()) {
    hello->set_nccl_missing(MessageOf(seat.status()));
    return;
  }
  hello->set_nccl_version(seat->version);
  hello->set_gpu(seat->gpu);
}

std::string NcclObstacle(const v1::RankMessage::Hello& leader,
                         const std::vector<RankPlace>& others) {
  std::vector<const v1::RankMessage::Hello*> hellos = {&leader};
  for (const RankPlace& place : others) hellos.push_back(&place.hello);
  for (int rank = 0; rank < static_cast<int>(hellos.size()); ++rank) {
    if (std::string obstacle = NcclObstacleOf(rank, hellos); !obstacle.empty()) return obstacle;
  }
  return {};
}

absl::StatusOr<v1::GroupMessage::Start> NewCollective(CollectiveKind kind,
                                                      const v1::RankMessage::Hello& leader,
                                                      const std::vector<RankPlace>& others) {
  const std::vector<int> elsewhere = RanksElsewhere(leader, others);
  if (kind == CollectiveKind::kShm && !elsewhere.empty()) {
    return FailedPrecondition(
        "--collective=shm: rank(s) {} cannot share memory with the leader: another host, network "
        "namespace or user",
        fmt::join(elsewhere, ", "));
  }
  const std::string obstacle = NcclObstacle(leader, others);
  if (kind == CollectiveKind::kNccl && !obstacle.empty() && !others.empty()) {
    return FailedPrecondition("--collective=nccl: {}", obstacle);
  }
  const bool tcp = kind == CollectiveKind::kTcp || !elsewhere.empty();
  FACET_ASSIGN_OR_RETURN(v1::GroupMessage::Start start, tcp ? NewTcp(leader, others) : NewShm());
  const bool wanted = kind == CollectiveKind::kAuto || kind == CollectiveKind::kNccl;
  start.set_nccl(wanted && obstacle.empty());
  return start;
}

absl::StatusOr<std::unique_ptr<Communicator>> AttachCollective(const v1::GroupMessage::Start& start,
                                                               CollectiveSeat seat, int rank,
                                                               int world,
                                                               DeviceCollectives* device) {
  absl::StatusOr<std::unique_ptr<Communicator>> host =
      AttachHosts(start, std::move(seat.listener_), seat.leader_host_, rank, world);
  if (!host.ok()) return host;
  if (start.nccl() && device == nullptr) {
    return FailedPrecondition("collective: this rank has no device that could use nccl");
  }
  const bool joins = device != nullptr && (start.nccl() || world == 1);
  return joins ? device->Join(*std::move(host)) : std::move(host);
}

}  // namespace facet
