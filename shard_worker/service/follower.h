#ifndef FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_
#define FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_

#include <stop_token>

#include "absl/status/status.h"
#include "serving/pulse.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/worker_metrics.h"
#include "shard_worker/service/worker_options.h"

namespace facet {

// A rank other than 0: joins its leader's group and runs the leader's plans, epoch after epoch.
// When one breaks it drops what it knows of it, keeps its weights, and joins again. OK once the
// leader says stop; an error if it is refused, or if no leader answers for the link's patience.
// After `stop` it goes on until the leader says stop as well, at most for the drain time. The
// calling thread beats `pulse` while it, and in an epoch also the rank, moves.
absl::Status RunFollower(const WorkerOptions& options, Rank* rank, WorkerMetrics* metrics,
                         Pulse* pulse, std::stop_token stop);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_
