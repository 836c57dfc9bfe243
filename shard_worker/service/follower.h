#ifndef FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_
#define FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_

#include <stop_token>

#include "absl/status/status.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/worker_metrics.h"
#include "shard_worker/service/worker_options.h"

namespace facet {

// A rank other than 0: joins its leader's group and runs the leader's plans. OK once the leader
// says stop; an error if it cannot join, or if the group has broken. After `stop` it goes on
// until the leader says stop as well, at most for the drain time.
absl::Status RunFollower(const WorkerOptions& options, Rank* rank, WorkerMetrics* metrics,
                         std::stop_token stop);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_FOLLOWER_H_
