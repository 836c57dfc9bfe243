#include "kernels/collectives/arena.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/futex.h"

namespace facet {
namespace {

constexpr uint64_t kMagic = 0x66616365'74617265;  // "facetare"
constexpr uint32_t kVersion = 1;
constexpr size_t kPage = 4096;

// The states of the failure record.
constexpr uint32_t kNoFailure = 0;
constexpr uint32_t kBeingWritten = 1;
constexpr uint32_t kWritten = 2;

size_t RoundUpToPage(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

}  // namespace

struct Arena::Header {
  uint64_t magic;
  uint32_t version;
  int32_t world;
  uint64_t nonce;
  uint64_t slot_bytes;

  std::atomic<uint32_t> failure;  // one of the states above; guards what follows
  int32_t failure_code;
  uint32_t message_bytes;
  char message[480];
};

size_t Arena::BytesFor(int world, size_t slot_bytes) {
  const size_t states = sizeof(Header) + static_cast<size_t>(world) * sizeof(RankState);
  return RoundUpToPage(states + alignof(RankState)) + static_cast<size_t>(world) * slot_bytes;
}

Arena::Arena(std::shared_ptr<std::byte> memory, int world, size_t slot_bytes)
    : memory_(std::move(memory)), world_(world), slot_bytes_(slot_bytes) {
  constexpr size_t kStates =
      (sizeof(Header) + alignof(RankState) - 1) / alignof(RankState) * alignof(RankState);
  ranks_ = reinterpret_cast<RankState*>(memory_.get() + kStates);
  buffers_ = memory_.get() + BytesFor(world, 0);
}

Arena::Header& Arena::shared() const {
  return *std::launder(reinterpret_cast<Header*>(memory_.get()));
}

Arena Arena::Create(std::shared_ptr<std::byte> memory, int world, size_t slot_bytes,
                    uint64_t nonce) {
  FACET_CHECK(world >= 1 && world <= kMaxRanks, "world is {}", world);
  FACET_CHECK(slot_bytes >= kMinSlotBytes && slot_bytes <= kMaxSlotBytes &&
                  slot_bytes % kSlotBytesUnit == 0,
              "slot_bytes is {}", slot_bytes);
  Arena arena(std::move(memory), world, slot_bytes);
  Header* header = new (arena.memory_.get()) Header{};
  header->magic = kMagic;
  header->version = kVersion;
  header->world = world;
  header->nonce = nonce;
  header->slot_bytes = slot_bytes;
  for (int rank = 0; rank < world; ++rank) {
    new (&arena.ranks_[rank]) RankState{.rounds = kBeforeFirstRound};
  }
  return arena;
}

absl::StatusOr<Arena> Arena::Open(std::shared_ptr<std::byte> memory, size_t bytes, int world,
                                  uint64_t nonce) {
  if (bytes < BytesFor(1, kMinSlotBytes)) {
    return FailedPrecondition("the shared segment has only {} bytes", bytes);
  }
  const Header& header = *reinterpret_cast<const Header*>(memory.get());
  if (header.magic != kMagic) {
    return FailedPrecondition("the shared segment is none of Facet's (magic {:#x})", header.magic);
  }
  if (header.version != kVersion) {
    return FailedPrecondition("the shared segment has layout version {}, this program has {}",
                              header.version, kVersion);
  }
  if (header.world != world) {
    return FailedPrecondition("the shared segment is for {} ranks, this rank expects {}",
                              header.world, world);
  }
  if (header.nonce != nonce) {
    return FailedPrecondition("the shared segment has nonce {:#x}, this rank expects {:#x}",
                              header.nonce, nonce);
  }
  const uint64_t slot_bytes = header.slot_bytes;
  if (slot_bytes < kMinSlotBytes || slot_bytes > kMaxSlotBytes ||
      slot_bytes % kSlotBytesUnit != 0 || bytes != BytesFor(world, slot_bytes)) {
    return FailedPrecondition("the shared segment has {} bytes, which do not fit slots of {}",
                              bytes, slot_bytes);
  }
  return Arena(std::move(memory), world, slot_bytes);
}

// Sequential consistency: either the sleeper's look at the counter sees the new round, or this
// look at the sleepers sees it.
void Arena::EnterRound(int rank) const {
  RankState& state = ranks_[rank];
  state.rounds.fetch_add(kRoundStep, std::memory_order_seq_cst);
  if (state.sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(state.rounds);
}

void Arena::MarkFailed() const {
  for (int rank = 0; rank < world_; ++rank) {
    RankState& state = ranks_[rank];
    state.rounds.fetch_or(kFailedBit, std::memory_order_seq_cst);
    if (state.sleepers.load(std::memory_order_seq_cst) != 0) FutexWakeAll(state.rounds);
  }
}

absl::Status Arena::Fail(absl::StatusCode code, std::string_view message) const {
  Header& header = shared();
  uint32_t expected = kNoFailure;
  if (header.failure.compare_exchange_strong(expected, kBeingWritten, std::memory_order_acq_rel)) {
    message = message.substr(0, sizeof(header.message));
    header.failure_code = static_cast<int32_t>(code);
    header.message_bytes = static_cast<uint32_t>(message.size());
    std::memcpy(header.message, message.data(), message.size());
    header.failure.store(kWritten, std::memory_order_release);
  }
  absl::Status failure = Failure();
  MarkFailed();  // by the losers, too: the winner may have been killed since
  return failure;
}

absl::Status Arena::Failure() const {
  const Header& header = shared();
  // The writer needs less than a microsecond, unless it lost its core or its life.
  for (int i = 0; i < 1000 && header.failure.load(std::memory_order_acquire) != kWritten; ++i) {
    std::this_thread::yield();
  }
  if (header.failure.load(std::memory_order_acquire) != kWritten) {
    return MakeStatus(absl::StatusCode::kAborted, "a rank died while it reported a failure");
  }
  const size_t bytes = std::min<size_t>(header.message_bytes, sizeof(header.message));
  return MakeStatus(static_cast<absl::StatusCode>(header.failure_code),
                    std::string_view(header.message, bytes));
}

}  // namespace facet
