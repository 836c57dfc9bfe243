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

struct Seat;

// Where the ranks of one id meet: floats on their way, by sender and receiver.
struct Room {
  std::mutex mutex;
  std::map<int, std::shared_ptr<Seat>> seats;  // until they are aborted
  std::set<int> ranks;                         // that have ever come
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
  NcclFaults faults;
  std::atomic<bool> aborted{false};
  std::atomic<NcclResult> error{NcclResult::kSuccess};
  std::atomic<int> groups{0};  // whose turn on the stream has come
  std::atomic<bool> met{false};
  std::mutex stream_mutex;  // held by who does this rank's work for it
  Stream stream = nullptr;  // null once it is aborted
  // Held by all captured transfers as well.
  const std::shared_ptr<const void> captured = std::make_shared<int>();
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
  int busy = facet::cuda_emulator::kBusyLooks;
  bool refused = false;                                 // a transfer of the group that is open
  std::vector<facet::cuda_emulator::Transfer> waiting;  // for the stream
};

namespace facet::cuda_emulator {
namespace {

bool AllHere(const Seat& seat) {
  std::lock_guard lock(seat.room->mutex);
  return static_cast<int>(seat.room->ranks.size()) == seat.world;
}

// Does what another rank's device would have done by now, without its host.
void Urge(Room* room, int rank) {
  std::shared_ptr<Seat> seat;
  {
    const std::lock_guard lock(room->mutex);
    const auto found = room->seats.find(rank);
    if (found == room->seats.end()) return;
    seat = found->second;
  }
  const std::unique_lock lock(seat->stream_mutex, std::try_to_lock);
  if (lock.owns_lock() && seat->stream != nullptr) seat->stream->TryAll();
}

void Put(const std::shared_ptr<Seat>& seat, Ready ready, Work work) {
  Stream const stream = seat->stream;
  stream->Put(
      Piece{std::move(ready), std::move(work), stream->capturing() ? seat->captured : nullptr});
}

// A group whose turn has come, unless its rank's fault has.
bool MayBegin(Seat* seat) {
  if (seat->aborted || seat->groups != seat->faults.groups) return true;
  if (!seat->met.exchange(true)) {
    seat->error = seat->faults.error;
    ++faults_met;
  }
  return seat->faults.until != nullptr && *seat->faults.until;
}

void Post(const std::shared_ptr<Seat>& seat, const Transfer& send) {
  Put(seat, {}, [seat, send] {
    if (seat->aborted) return 0;
    std::lock_guard lock(seat->room->mutex);
    seat->room->mail[{seat->rank, send.peer}].emplace_back(send.from, send.from + send.count);
    return 0;
  });
}

void Await(const std::shared_ptr<Seat>& seat, const Transfer& receive) {
  const std::pair route(receive.peer, seat->rank);
  const auto has_come = [seat, route] {
    std::lock_guard lock(seat->room->mutex);
    return seat->aborted || !seat->room->mail[route].empty();
  };
  const auto ready = [seat, has_come, peer = receive.peer] {
    if (has_come()) return true;
    Urge(seat->room.get(), peer);
    return has_come();
  };
  Put(seat, ready, [seat, route, receive] {
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
  const std::shared_ptr<Seat>& seat = comm->seat;
  {
    const std::lock_guard lock(seat->stream_mutex);
    FACET_CHECK(seat->stream == nullptr || seat->stream == transfers.front().stream,
                "a communicator on two streams");
    seat->stream = transfers.front().stream;
  }
  Put(
      seat, [seat] { return MayBegin(seat.get()); }, [seat] { return ++seat->groups, 0; });
  for (const Transfer& transfer : transfers) {
    if (transfer.from != nullptr) Post(seat, transfer);
  }
  for (const Transfer& transfer : transfers) {
    if (transfer.to != nullptr) Await(seat, transfer);
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
    seat->faults = all.faults[rank];
    seat->room->seats[rank] = seat;
    *comm = new ncclComm{seat};
    ++live_comms;
    return NcclResult::kInProgress;
  }

  NcclResult GetAsyncError(NcclComm comm, NcclResult* error) override {
    *error = comm->seat->error;
    const NcclResult init = comm->seat->faults.init;
    if (init != NcclResult::kSuccess) *error = init;
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
    const std::shared_ptr<Seat> seat = comm->seat;
    FACET_CHECK(seat->captured.use_count() == 1, "a graph has transfers of what is aborted");
    seat->aborted = true;
    {
      const std::lock_guard lock(seat->room->mutex);
      seat->room->seats.erase(seat->rank);
    }
    const std::lock_guard lock(seat->stream_mutex);
    seat->stream = nullptr;
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
    if (std::exchange(comm->refused, false)) {
      comm->waiting.clear();
      return NcclResult::kInvalidUsage;
    }
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
    if (transfer.stream->capturing() && !comm->seat->faults.capture) comm->refused = true;
    if (comm->refused) return NcclResult::kInvalidUsage;
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
