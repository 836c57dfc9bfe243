#ifndef FACET_SHARD_WORKER_SERVICE_WORKER_METRICS_H_
#define FACET_SHARD_WORKER_SERVICE_WORKER_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <string_view>
#include <vector>

#include "shard_worker/energy/gpu_meter.h"
#include "shard_worker/energy/host_meter.h"
#include "shard_worker/engine/leader_core.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/peer_watch.h"

namespace facet {

// What a worker tells Prometheus: facet_worker_*. The registry outlives it. Thread-safe except
// for BeginEpoch() and SetStats(), which belong to the engine thread.
class WorkerMetrics {
 public:
  explicit WorkerMetrics(prometheus::Registry* registry);

  void SetRank(int rank, int world, std::string_view device, const RankMemory& memory);
  // `phase`: "load", "join".
  void SetStartUpPhase(std::string_view phase, double seconds);
  void AddTimes(const StepTimes& times);
  void AddBreak(BreakCause cause);
  // From a broken epoch until the next one stands: on the leader, until it is ready.
  void AddRecovery(double seconds);
  // The leader only.
  void AddStep(double seconds, int64_t rows);
  // How long ago each rank moved.
  void SetStepAges(const std::vector<TimeUs>& ages);
  // What was measured since the last call, and is measured now; what is absent appears nowhere.
  void AddGpu(std::string_view uuid, const GpuReading& reading);
  // `host`: the machine, however many containers and names it has.
  void AddHostEnergy(std::string_view host, const std::vector<ZoneEnergy>& zones);
  // Counters of the stats begin anew.
  void BeginEpoch();
  void SetStats(const LeaderStats& stats);

 private:
  void AddProfile(const StepProfile& profile);

  prometheus::Family<prometheus::Gauge>& info_;
  prometheus::Family<prometheus::Gauge>& start_up_seconds_;
  prometheus::Gauge& weight_bytes_;
  prometheus::Gauge& slice_bytes_;
  prometheus::Gauge& kv_bytes_;
  prometheus::Counter& steps_;
  std::array<prometheus::Counter*, 3> part_seconds_;  // compute, collective, wait
  std::array<prometheus::Counter*, 3> head_rows_;     // asked, screened, completed
  // Of the steps that were profiled, by StepOperation: seconds, bytes, operations.
  std::array<std::array<prometheus::Counter*, kStepOperations>, 3> operations_;
  prometheus::Counter& profiled_steps_;
  prometheus::Histogram& step_seconds_;
  prometheus::Histogram& step_rows_;
  std::array<prometheus::Gauge*, kBlockPools> kv_blocks_used_;
  std::array<prometheus::Gauge*, kBlockPools> kv_blocks_total_;
  prometheus::Gauge& running_;
  prometheus::Gauge& waiting_;
  prometheus::Gauge& streams_;
  prometheus::Counter& prompt_tokens_;
  prometheus::Counter& output_tokens_;
  prometheus::Counter& proposed_tokens_;
  prometheus::Counter& accepted_tokens_;
  prometheus::Counter& cached_tokens_;
  prometheus::Gauge& pending_tokens_;
  prometheus::Counter& preemptions_;
  std::array<prometheus::Gauge*, kBlockPools> kv_blocks_cached_;
  std::array<prometheus::Counter*, 2> expired_;  // waiting, running
  std::array<prometheus::Counter*, kEngineFinishes> sequences_;
  std::array<prometheus::Counter*, kLeaderRefusals> refusals_;
  std::array<prometheus::Counter*, kBreakCauses> breaks_;
  prometheus::Histogram& recovery_seconds_;
  prometheus::Family<prometheus::Gauge>& step_age_seconds_;
  std::array<prometheus::Counter*, 2> canaries_;  // right, wrong
  prometheus::Gauge& canary_seconds_;
  // Without a member until somebody measures.
  prometheus::Family<prometheus::Counter>& gpu_joules_;
  prometheus::Family<prometheus::Gauge>& gpu_watts_;
  prometheus::Family<prometheus::Gauge>& gpu_memory_used_bytes_;
  prometheus::Family<prometheus::Gauge>& gpu_memory_bytes_;
  prometheus::Family<prometheus::Gauge>& gpu_celsius_;
  prometheus::Family<prometheus::Gauge>& gpu_clock_hertz_;
  prometheus::Family<prometheus::Counter>& host_joules_;
  LeaderStats last_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_WORKER_METRICS_H_
