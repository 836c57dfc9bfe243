#ifndef FACET_KERNELS_COLLECTIVES_MESH_H_
#define FACET_KERNELS_COLLECTIVES_MESH_H_

// How the ranks of a group come to hold one connection to each other rank.

#include <chrono>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/collectives/frame.h"
#include "kernels/collectives/socket.h"
#include "kernels/collectives/unique_fd.h"

namespace facet {

struct MeshOptions {
  // Who connects and has not said a whole hello yet. One more turns the oldest away, so that
  // strangers hold no place: a rank says its hello at once.
  size_t visitors_max = 64;
  std::chrono::milliseconds hello_timeout{1000};
  std::chrono::milliseconds retry{10};  // of a peer that does not listen yet, or closed
  // A host that does not answer for so long is gone.
  std::chrono::milliseconds lost_link{2000};
};

struct TcpGroup {
  int rank = 0;
  int world = 1;
  std::vector<std::string> addresses;  // by rank, host:port
  TcpKey key;
};

using MeshClock = std::chrono::steady_clock;

// Calls the lower ranks and lets the higher ones in, all side by side. Returns the connections by
// rank, the own one empty. DeadlineExceeded names the ranks that are missing and what is known of
// them. REQUIRES: `listener` is bound to the group's address of this rank.
absl::StatusOr<std::vector<UniqueFd>> FormMesh(const TcpListener& listener, const TcpGroup& group,
                                               const MeshOptions& options,
                                               MeshClock::time_point deadline);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_MESH_H_
