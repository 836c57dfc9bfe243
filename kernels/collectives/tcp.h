#ifndef FACET_KERNELS_COLLECTIVES_TCP_H_
#define FACET_KERNELS_COLLECTIVES_TCP_H_

// Ranks that are processes of any hosts, connected by sockets of their own: one connection per pair
// of ranks, nothing encrypted, as fits a network that carries nobody else's traffic.

#include <chrono>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/exchange.h"
#include "kernels/collectives/mesh.h"
#include "kernels/collectives/socket.h"

namespace facet {

struct TcpOptions {
  MeshOptions mesh;
  ExchangeOptions exchange;
  // For the roots of peers in an all-reduce; the same on all ranks.
  size_t buffer_bytes = size_t{1} << 20;
  std::chrono::milliseconds attach_timeout{10'000};
};

// Forms the group with all its ranks and returns when each has heard every other. `listener` is
// bound to this rank's address, and closes when the group stands, or does not. Errors:
// InvalidArgument; DeadlineExceeded names the ranks that have not come; Unavailable one that went
// away meanwhile.
absl::StatusOr<std::unique_ptr<Communicator>> JoinTcpGroup(TcpListener listener,
                                                           const TcpGroup& group,
                                                           const TcpOptions& options);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_TCP_H_
