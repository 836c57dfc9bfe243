#include "tests/cuda_emulator/nccl_host.h"

#include <atomic>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/cuda_emulator/stream.h"

namespace facet::cuda_emulator {
namespace {

using cuda::NcclComm;
using cuda::NcclId;
using cuda::NcclResult;
using cuda::Stream;

// Where the ranks of one id meet: floats on their way, by sender and receiver.
struct Room {
  std::mutex mutex;
  std::set<int> ranks;
  std::map<std::pair<int, int>, std::deque<std::vector<float>>> mail;
};

struct Transfer {
  const float* from = nullptr;  // of a send
  float* to = nullptr;          // of a receive
  size_t count = 0;
  int peer = 0;
  Stream stream = nullptr;
};

// What work on a stream may still want when the communicator is gone.
struct Seat {
  std::shared_ptr<Room> room;
  int rank = 0;
  int world = 0;
  std::atomic<bool> aborted{false};
};

// How often a communicator says that it is in progress after each call.
constexpr int kBusyLooks = 2;

struct World {
  std::mutex mutex;
  std::map<NcclId, std::weak_ptr<Room>> rooms;
  std::map<int, NcclFaults> faults;
  uint64_t ids = 0;
};

World& TheWorld() {
  static World world;
  return world;
}

std::atomic<bool> nccl_found{true};
std::atomic<int> live_comms{0};
std::atomic<int> faults_met{0};

}  // namespace
}  // namespace facet::cuda_emulator

struct ncclComm {
  std::shared_ptr<facet::cuda_emulator::Seat> seat;
  facet::cuda_emulator::NcclFaults faults;
  int busy = facet::cuda_emulator::kBusyLooks;
  int groups = 0;
  facet::cuda::NcclResult error = facet::cuda::NcclResult::kSuccess;
  std::vector<facet::cuda_emulator::Transfer> waiting;  // for the stream
};

namespace facet::cuda_emulator {
namespace {

bool AllHere(const Seat& seat) {
  std::lock_guard lock(seat.room->mutex);
  return static_cast<int>(seat.room->ranks.size()) == seat.world;
}

void Post(const std::shared_ptr<Seat>& seat, const Transfer& send) {
  send.stream->Put([seat, send] {
    if (seat->aborted) return 0;
    std::lock_guard lock(seat->room->mutex);
    seat->room->mail[{seat->rank, send.peer}].emplace_back(send.from, send.from + send.count);
    return 0;
  });
}

void Await(const std::shared_ptr<Seat>& seat, const Transfer& receive) {
  const std::pair route(receive.peer, seat->rank);
  const auto ready = [seat, route] {
    std::lock_guard lock(seat->room->mutex);
    return seat->aborted || !seat->room->mail[route].empty();
  };
  receive.stream->PutWhen(ready, [seat, route, receive] {
    if (seat->aborted) return 0;
    std::lock_guard lock(seat->room->mutex);
    std::deque<std::vector<float>>& mail = seat->room->mail[route];
    FACET_CHECK(mail.front().size() == receive.count, "rank {} sent {} floats, rank {} awaits {}",
                route.first, mail.front().size(), route.second, receive.count);
    std::memcpy(receive.to, mail.front().data(), receive.count * sizeof(float));
    mail.pop_front();
    return 0;
  });
}

// Puts a group on its stream: what is sent before what is awaited, so that no two ranks wait for
// each other.
void Issue(ncclComm* comm) {
  const std::vector<Transfer> transfers = std::exchange(comm->waiting, {});
  if (transfers.empty()) return;
  if (comm->groups++ == comm->faults.groups) {
    ++faults_met;
    comm->error = comm->faults.error;
    const auto never = [seat = comm->seat] { return seat->aborted.load(); };
    transfers.front().stream->PutWhen(never, [] { return 0; });
    return;
  }
  for (const Transfer& transfer : transfers) {
    if (transfer.from != nullptr) Post(comm->seat, transfer);
  }
  for (const Transfer& transfer : transfers) {
    if (transfer.to != nullptr) Await(comm->seat, transfer);
  }
}

class HostNccl final : public cuda::Nccl {
 public:
  int version() override { return 22809; }

  NcclResult GetUniqueId(NcclId* id) override {
    std::lock_guard lock(TheWorld().mutex);
    id->fill(std::byte{0x77});
    const uint64_t number = ++TheWorld().ids;
    std::memcpy(id->data(), &number, sizeof(number));
    return NcclResult::kSuccess;
  }

  NcclResult InitRank(NcclComm* comm, int world, const NcclId& id, int rank) override {
    const auto seat = std::make_shared<Seat>();
    seat->rank = rank;
    seat->world = world;
    World& all = TheWorld();
    std::lock_guard lock(all.mutex);
    seat->room = all.rooms[id].lock();
    if (seat->room == nullptr) all.rooms[id] = seat->room = std::make_shared<Room>();
    std::lock_guard room_lock(seat->room->mutex);
    FACET_CHECK(seat->room->ranks.insert(rank).second, "rank {} is there already", rank);
    *comm = new ncclComm{seat, all.faults[rank]};
    ++live_comms;
    return NcclResult::kInProgress;
  }

  NcclResult GetAsyncError(NcclComm comm, NcclResult* error) override {
    *error = comm->error;
    if (comm->faults.init != NcclResult::kSuccess) *error = comm->faults.init;
    if (*error != NcclResult::kSuccess) return NcclResult::kSuccess;
    if (!AllHere(*comm->seat) || comm->busy-- > 0) {
      *error = NcclResult::kInProgress;
    } else {
      comm->busy = 0;
      Issue(comm);
    }
    return NcclResult::kSuccess;
  }

  NcclResult Abort(NcclComm comm) override {
    comm->seat->aborted = true;
    delete comm;
    --live_comms;
    return NcclResult::kSuccess;
  }

  NcclResult GroupStart() override {
    FACET_CHECK(open_ == nullptr, "a group inside a group");
    return NcclResult::kSuccess;
  }

  NcclResult GroupEnd() override {
    ncclComm* const comm = std::exchange(open_, nullptr);
    if (comm == nullptr) return NcclResult::kSuccess;  // an empty group
    comm->busy = kBusyLooks;
    return NcclResult::kInProgress;
  }

  NcclResult Send(const float* from, size_t count, int peer, NcclComm comm,
                  Stream stream) override {
    return Add(comm, {.from = from, .count = count, .peer = peer, .stream = stream});
  }

  NcclResult Receive(float* to, size_t count, int peer, NcclComm comm, Stream stream) override {
    return Add(comm, {.to = to, .count = count, .peer = peer, .stream = stream});
  }

  NcclResult AllGather(const float* from, float* to, size_t count, NcclComm comm,
                       Stream stream) override {
    for (int peer = 0; peer < comm->seat->world; ++peer) {
      Add(comm, {.from = from, .count = count, .peer = peer, .stream = stream});
      Add(comm, {.to = to + static_cast<size_t>(peer) * count,
                 .count = count,
                 .peer = peer,
                 .stream = stream});
    }
    return NcclResult::kSuccess;
  }

  std::string Describe(NcclResult result, NcclComm) override {
    return fmt::format("emulated error {}", static_cast<int>(result));
  }

 private:
  NcclResult Add(NcclComm comm, const Transfer& transfer) {
    FACET_CHECK(open_ == nullptr || open_ == comm, "two communicators in one group");
    const void* const address = transfer.from != nullptr ? transfer.from : transfer.to;
    FACET_CHECK(InDeviceMemory(address, static_cast<int64_t>(transfer.count * sizeof(float))),
                "a transfer of {} floats outside device memory", transfer.count);
    open_ = comm;
    comm->waiting.push_back(transfer);
    return NcclResult::kSuccess;
  }

  static thread_local ncclComm* open_;  // whose group this thread has begun
};

thread_local ncclComm* HostNccl::open_ = nullptr;

}  // namespace

void SetNcclFaults(int rank, const NcclFaults& faults) {
  std::lock_guard lock(TheWorld().mutex);
  TheWorld().faults[rank] = faults;
}

void SetNcclFound(bool found) { nccl_found = found; }

int NcclFaultsMet() { return faults_met; }

int LiveNcclComms() { return live_comms; }

}  // namespace facet::cuda_emulator

namespace facet::cuda {

absl::StatusOr<Nccl*> OpenNccl() {
  if (!cuda_emulator::nccl_found) return FailedPrecondition("there is no emulated NCCL");
  static auto* const nccl = new cuda_emulator::HostNccl;
  return nccl;
}

}  // namespace facet::cuda
