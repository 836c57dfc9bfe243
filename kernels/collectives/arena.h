#ifndef FACET_KERNELS_COLLECTIVES_ARENA_H_
#define FACET_KERNELS_COLLECTIVES_ARENA_H_

// The memory that the ranks of one group share, whether it lies on the heap of one process or in
// a segment of several: for every rank a state and two buffers. The README beside this file tells
// why two buffers and one counter are enough.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/call.h"

namespace facet {

struct ArenaOptions {
  // What one rank may have in flight: two buffers of half of it. Larger messages go through in
  // pieces.
  // Buffers that stay in the second-level cache move data faster than buffers that need few
  // pieces (README).
  size_t slot_bytes = size_t{512} << 10;
  // How long a wait spins before it sleeps. No rank spins where the host has fewer processors
  // than the group has ranks.
  std::chrono::microseconds spin{50};
  // A longer broadcast or gathered message is an error.
  size_t message_bytes_max = size_t{256} << 20;
};

inline constexpr size_t kSlotBytesUnit = 8 << 10;  // two buffers of whole pages
inline constexpr size_t kMinSlotBytes = 16 << 10;
inline constexpr size_t kMaxSlotBytes = size_t{1} << 30;

// A rank's counter and its two headers share a line: who sees the one has the other. A header says
// what the round is about; peers in the same round compare.
struct alignas(64) RankState {
  // Twice the number of rounds entered; bit 0 says that the group has failed. Only the rank adds,
  // any rank sets the bit, and waiters sleep on this word, so that both wake them.
  std::atomic<uint32_t> rounds;
  CallHeader headers[2];
  // On a line that only sleepers write: how many sleep on `rounds`.
  alignas(64) std::atomic<uint32_t> sleepers;
};
static_assert(sizeof(RankState) == 128 && std::atomic<uint32_t>::is_always_lock_free);

// Rounds are named by the value that the counter has inside them, modulo 2^32. The count starts
// shortly before it wraps, so that every test and every group has seen it wrap.
inline constexpr uint32_t kFailedBit = 1;
inline constexpr uint32_t kRoundStep = 2;
inline constexpr uint32_t kBeforeFirstRound = 0u - 100 * kRoundStep;

// A view of the shared memory; copies look at the same. Thread-safe where it says so.
class Arena {
 public:
  static size_t BytesFor(int world, size_t slot_bytes);

  // Lays the arena out in page-aligned `memory` of BytesFor() bytes.
  static Arena Create(std::shared_ptr<std::byte> memory, int world, size_t slot_bytes,
                      uint64_t nonce);
  // Looks at an arena that another process created in `bytes` bytes.
  static absl::StatusOr<Arena> Open(std::shared_ptr<std::byte> memory, size_t bytes, int world,
                                    uint64_t nonce);

  int world() const { return world_; }
  size_t buffer_bytes() const { return slot_bytes_ / 2; }
  RankState& rank(int rank) const { return ranks_[rank]; }
  CallHeader& header(int rank, uint32_t round) const { return ranks_[rank].headers[Parity(round)]; }
  std::byte* buffer(int rank, uint32_t round) const {
    return buffers_ + static_cast<size_t>(rank) * slot_bytes_ + Parity(round) * buffer_bytes();
  }

  // Counts `rank` into its next round and wakes who waits for it.
  void EnterRound(int rank) const;

  // Makes the group fail for `code` and `message`, unless it has failed already, wakes everyone
  // and returns what all ranks see: the first failure. Thread-safe.
  absl::Status Fail(absl::StatusCode code, std::string_view message) const;
  // REQUIRES: some rank's counter has kFailedBit. Thread-safe.
  absl::Status Failure() const;

 private:
  struct Header;

  Arena(std::shared_ptr<std::byte> memory, int world, size_t slot_bytes);
  static size_t Parity(uint32_t round) { return (round / kRoundStep) % 2; }
  Header& shared() const;
  void MarkFailed() const;

  std::shared_ptr<std::byte> memory_;
  int world_;
  size_t slot_bytes_;
  RankState* ranks_;
  std::byte* buffers_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_ARENA_H_
