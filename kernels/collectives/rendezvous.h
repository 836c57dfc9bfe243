#ifndef FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_
#define FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_

// How the processes of a group find each other on a host and come to hold the same file.

#include <chrono>
#include <cstdint>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/unique_fd.h"

namespace facet {

struct GroupName {
  std::string_view name;
  uint64_t nonce = 0;
  int world = 0;
};

using RendezvousClock = std::chrono::steady_clock;

// Waits until ranks 1 .. world - 1 are there and gives each `fd`. All or nobody gets it, unless one
// dies while it is handed out.
absl::Status HandOut(int fd, const GroupName& group, RendezvousClock::time_point deadline);

// Goes to rank 0 as `rank` and returns its file.
absl::StatusOr<UniqueFd> Fetch(const GroupName& group, int rank,
                               RendezvousClock::time_point deadline);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_RENDEZVOUS_H_
