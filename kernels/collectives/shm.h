#ifndef FACET_KERNELS_COLLECTIVES_SHM_H_
#define FACET_KERNELS_COLLECTIVES_SHM_H_

// Ranks that are processes of one host. They share an anonymous memory file (memfd), which rank 0
// hands to the others over a Unix socket with an abstract name: neither has an entry in any file
// system, so nothing can be left behind, however a rank dies. The ranks must run in one network
// namespace (one host, one pod) and as one user.

#include <chrono>
#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/communicator.h"

namespace facet {

struct ShmOptions {
  ArenaOptions arena;  // slot_bytes: rank 0's counts for all
  // Which group of this name: who comes with another nonce is refused.
  uint64_t nonce = 0;
  std::chrono::milliseconds attach_timeout{10'000};
};

inline constexpr size_t kShmNameBytesMax = 80;

// Forms the group `name` as its rank 0. Returns when all ranks have attached; DeadlineExceeded
// names those that have not. Until then the name is taken on this host (AlreadyExists).
absl::StatusOr<std::unique_ptr<Communicator>> CreateShmGroup(std::string_view name, int world,
                                                             const ShmOptions& options);

// Joins the group as rank 1 .. world - 1. Waits for rank 0 to appear and for the group to be whole.
// FailedPrecondition if rank 0 runs another version, world or nonce or has this rank already;
// Unavailable if it goes away meanwhile.
absl::StatusOr<std::unique_ptr<Communicator>> AttachShmGroup(std::string_view name, int rank,
                                                             int world, const ShmOptions& options);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_SHM_H_
