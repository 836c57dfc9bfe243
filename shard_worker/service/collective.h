#ifndef FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_
#define FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "facet/v1/shard.pb.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// How the ranks of a new group will find each other; goes to all of them.
v1::GroupMessage::Start NewCollective();

// Attaches one rank to it; returns when all ranks have. Unimplemented names a kind that this
// version does not know.
absl::StatusOr<std::unique_ptr<Communicator>> AttachCollective(const v1::GroupMessage::Start& start,
                                                               int rank, int world);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_COLLECTIVE_H_
