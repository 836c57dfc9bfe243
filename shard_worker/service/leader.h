#ifndef FACET_SHARD_WORKER_SERVICE_LEADER_H_
#define FACET_SHARD_WORKER_SERVICE_LEADER_H_

#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "serving/grpc_server.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/group_service.h"
#include "shard_worker/service/leader_service.h"
#include "shard_worker/service/worker_metrics.h"
#include "shard_worker/service/worker_options.h"

namespace facet {

using LoadRank = std::function<absl::StatusOr<std::unique_ptr<Rank>>()>;

// Rank 0 of a group: gathers the other ranks and serves routers.
class Leader {
 public:
  // Listens. Ranks may come from now on; routers are told that the group is not up.
  static absl::StatusOr<std::unique_ptr<Leader>> Start(const WorkerOptions& options,
                                                       WorkerMetrics* metrics);
  ~Leader();

  const std::string& address() const { return running_.address; }

  // Loads, forms the group and serves until `stop`; then drains and lets the other ranks go. An
  // error means that the group could not be formed or has broken. Call once; the calling thread
  // becomes the engine thread.
  absl::Status Serve(const LoadRank& load, std::stop_token stop);

 private:
  Leader(const WorkerOptions& options, WorkerMetrics* metrics);
  absl::Status FormGroup(Rank* rank, std::stop_token stop);
  absl::Status RunLoop(Rank* rank, EngineLoop* loop, std::stop_token stop);
  void SetServing(bool serving);

  const WorkerOptions options_;
  WorkerMetrics* const metrics_;
  GroupService group_;
  LeaderService sessions_;
  RunningServer running_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_LEADER_H_
