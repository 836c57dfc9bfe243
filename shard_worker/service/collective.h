#ifndef FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_
#define FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_

// How the ranks of a new group find each other: over shared memory where they can share it, over
// TCP where they cannot; and whether their devices exchange data without the hosts, by NCCL.

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "facet/v1/shard.pb.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/device_collectives.h"
#include "kernels/collectives/socket.h"

namespace facet {

enum class CollectiveKind { kAuto, kShm, kTcp, kNccl };

struct CollectiveOptions {
  // Rank 0's counts for all. kAuto: shared memory if all ranks can share it, and NCCL beside it if
  // all have it and a GPU of their own. kNccl: the same, and not without. kShm, kTcp: without.
  CollectiveKind kind = CollectiveKind::kAuto;
  // Of TCP: where this rank listens while a group forms, host:port. Empty: on any free port, of
  // loopback if the leader is there, else of all interfaces.
  std::string listen;
  // How other ranks reach that: host or host:port. Empty: the host of `listen`, and if that is
  // none in particular, the one that the leader and this rank see each other at.
  std::string address;
};

// What a rank has ready for the epoch that it joins or forms: a port, and the words to describe
// where it is.
class CollectiveSeat {
 public:
  // `leader`: where rank 0 serves. FailedPrecondition if the port that was asked for is in use. If
  // none was, and there is none, as in a namespace without a network, the rank cannot use TCP.
  static absl::StatusOr<CollectiveSeat> Take(const CollectiveOptions& options,
                                             std::string_view leader);

  void Describe(v1::RankMessage::Hello* hello) const;

 private:
  friend absl::StatusOr<std::unique_ptr<Communicator>> AttachCollective(
      const v1::GroupMessage::Start& start, CollectiveSeat seat, int rank, int world,
      DeviceCollectives* device);
  CollectiveSeat() = default;

  std::optional<TcpListener> listener_;
  std::string leader_host_;
  std::string address_;  // empty without a listener
};

// Adds what `device` could do with others of its kind; nothing if it is null.
void DescribeDevice(DeviceCollectives* device, v1::RankMessage::Hello* hello);

// What the leader knows of another rank: its hello, and how gRPC names the other end of its stream.
struct RankPlace {
  v1::RankMessage::Hello hello;
  std::string peer;
};

// How the ranks of a new group will find each other; goes to all of them. `leader`: rank 0's own
// hello; `others`: from rank 1 on. FailedPrecondition names the ranks that cannot share memory or
// use NCCL if `kind` asks for it, or that others would not find.
absl::StatusOr<v1::GroupMessage::Start> NewCollective(CollectiveKind kind,
                                                      const v1::RankMessage::Hello& leader,
                                                      const std::vector<RankPlace>& others);

// Why the ranks' devices cannot exchange data by NCCL, as a sentence; empty if they can.
std::string NcclObstacle(const v1::RankMessage::Hello& leader,
                         const std::vector<RankPlace>& others);

// Attaches one rank to it, with its device if it has one; returns when all ranks have.
// Unimplemented names a kind that this version does not know.
absl::StatusOr<std::unique_ptr<Communicator>> AttachCollective(const v1::GroupMessage::Start& start,
                                                               CollectiveSeat seat, int rank,
                                                               int world,
                                                               DeviceCollectives* device);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_
