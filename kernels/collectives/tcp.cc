#include "kernels/collectives/tcp.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/collectives/tcp_communicator.h"

namespace facet {
namespace {

absl::Status CheckArguments(const TcpGroup& group, const TcpOptions& options) {
  if (group.world < 1 || group.world > kMaxRanks) {
    return InvalidArgument("a group has 1 to {} ranks, not {}", kMaxRanks, group.world);
  }
  if (group.rank < 0 || group.rank >= group.world) {
    return InvalidArgument("rank {} is not in a group of {}", group.rank, group.world);
  }
  if (static_cast<int>(group.addresses.size()) != group.world) {
    return InvalidArgument("{} addresses for {} ranks", group.addresses.size(), group.world);
  }
  if (options.buffer_bytes < kTcpBufferBytesMin) {
    return InvalidArgument("buffer_bytes is at least {}, not {}", kTcpBufferBytesMin,
                           options.buffer_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> JoinTcpGroup(TcpListener listener,
                                                           const TcpGroup& group,
                                                           const TcpOptions& options) {
  const auto deadline = MeshClock::now() + options.attach_timeout;
  FACET_RETURN_IF_ERROR(CheckArguments(group, options));
  std::vector<UniqueFd> sockets(1);
  if (group.world > 1) {
    FACET_ASSIGN_OR_RETURN(sockets, FormMesh(listener, group, options.mesh, deadline));
  }
  auto communicator = std::make_unique<TcpCommunicator>(group.rank, std::move(sockets),
                                                        options.buffer_bytes, options.exchange);
  // Now this rank has its connections. Whether all have is known when all say so.
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - MeshClock::now());
  communicator->SetTimeout(std::max(left, std::chrono::milliseconds(1)));
  FACET_RETURN_IF_ERROR(communicator->Barrier());
  communicator->TakeTimes();
  return communicator;
}

}  // namespace facet
