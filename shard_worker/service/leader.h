#ifndef FACET_SHARD_WORKER_SERVICE_LEADER_H_
#define FACET_SHARD_WORKER_SERVICE_LEADER_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "serving/grpc_server.h"
#include "serving/pulse.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/engine_loop.h"
#include "shard_worker/service/group_service.h"
#include "shard_worker/service/leader_service.h"
#include "shard_worker/service/ticker.h"
#include "shard_worker/service/worker_metrics.h"
#include "shard_worker/service/worker_options.h"

namespace facet {

using LoadRank = std::function<absl::StatusOr<std::unique_ptr<Rank>>()>;

// Rank 0 of a group: gathers the other ranks and serves routers, epoch after epoch. A thread of its
// own, "beat", tells the other ranks that this one lives, looks whether they do, and takes health
// back when the engine thread does not renew it.
class Leader {
 public:
  // Listens. Ranks may come from now on; routers are told that the group is not up. Borrows
  // `metrics` and `pulse`; the thread that serves beats the pulse.
  static absl::StatusOr<std::unique_ptr<Leader>> Start(const WorkerOptions& options,
                                                       WorkerMetrics* metrics, Pulse* pulse);
  ~Leader();

  const std::string& address() const { return running_.address; }

  // Loads, forms the group and serves until `stop`; then drains and lets the other ranks go. When
  // an epoch breaks, its sessions end with UNAVAILABLE, and the ranks may come back for the next
  // one within WorkerOptions::rejoin. An error: they did not, the group could not be formed at
  // first, or it computes wrong tokens. Call once; the calling thread becomes the engine thread.
  absl::Status Serve(const LoadRank& load, std::stop_token stop);

 private:
  Leader(const WorkerOptions& options, WorkerMetrics* metrics, Pulse* pulse);
  absl::Status Load(const LoadRank& load);
  absl::Status ServeEpochs(std::stop_token stop);
  // Until the ranks are there and attached.
  absl::StatusOr<uint64_t> FormEpoch(TimeUs give_up, std::stop_token stop);
  absl::Status AwaitRanks(TimeUs give_up, std::stop_token stop);
  absl::StatusOr<uint64_t> TryAttach();
  EpochEnd ServeEpoch(uint64_t epoch, std::stop_token stop);
  absl::Status LetFollowersGo();
  void OnReady(bool ready);
  void Tick();
  // Any thread.
  void UpdateHealth() ABSL_LOCKS_EXCLUDED(health_mutex_);
  void SetLoop(std::shared_ptr<EngineLoop> loop) ABSL_LOCKS_EXCLUDED(health_mutex_);

  const WorkerOptions options_;
  WorkerMetrics* const metrics_;
  Pulse* const pulse_;
  GroupService group_;
  LeaderService sessions_;
  RunningServer running_;
  std::unique_ptr<Rank> rank_;
  std::atomic<Rank*> loaded_ = nullptr;  // rank_, for the beats

  // Of the engine thread, between epochs.
  std::optional<CanaryAnswer> canary_;
  std::optional<TimeUs> broke_;  // and is not ready again
  bool stood_ = false;           // an epoch was ready

  absl::Mutex health_mutex_;
  std::shared_ptr<EngineLoop> loop_ ABSL_GUARDED_BY(health_mutex_);
  bool serving_ ABSL_GUARDED_BY(health_mutex_) = false;

  std::optional<Ticker> beat_;  // the last: its thread uses the others
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_LEADER_H_
