#include "shard_worker/service/worker_metrics.h"

#include <string>

namespace facet {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Registry;

Family<Gauge>& Gauges(Registry* registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(*registry);
}

Family<Counter>& Counters(Registry* registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(*registry);
}

Histogram& OneHistogram(Registry* registry, const char* name, const char* help,
                        const Histogram::BucketBoundaries& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(*registry).Add({}, buckets);
}

const Histogram::BucketBoundaries kSecondBuckets = {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
                                                    0.1,    0.2,   0.5,   1,     2,    5,    10};
const Histogram::BucketBoundaries kRowBuckets = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048};

constexpr const char* kPoolNames[kBlockPools] = {"full", "window"};
constexpr const char* kHeadNames[3] = {"asked", "screened", "completed"};
constexpr const char* kPartNames[3] = {"compute", "collective", "wait"};

const char* FinishName(EngineFinish finish) {
  switch (finish) {
    case EngineFinish::kStopToken:
      return "stop";
    case EngineFinish::kLength:
      return "length";
    case EngineFinish::kCancelled:
      return "cancelled";
    case EngineFinish::kDeadline:
      return "deadline";
    case EngineFinish::kError:
      return "error";
  }
  return "error";
}

}  // namespace

WorkerMetrics::WorkerMetrics(Registry* registry)
    : info_(Gauges(registry, "facet_worker_info", "1, with what this rank is in its labels.")),
      start_up_seconds_(Gauges(registry, "facet_worker_start_up_seconds",
                               "How long each phase of the start took.")),
      weight_bytes_(Gauges(registry, "facet_worker_weight_bytes",
                           "Packed weights of this rank's slice, all of which a step reads.")
                        .Add({})),
      slice_bytes_(Gauges(registry, "facet_worker_slice_bytes",
                          "The weights of this rank's slice as the model file has them.")
                       .Add({})),
      kv_bytes_(
          Gauges(registry, "facet_worker_kv_bytes", "Memory of this rank's KV pools.").Add({})),
      steps_(Counters(registry, "facet_worker_steps_total", "Steps computed.").Add({})),
      step_seconds_(OneHistogram(registry, "facet_worker_step_seconds",
                                 "Whole steps, as the leader sees them.", kSecondBuckets)),
      step_rows_(OneHistogram(registry, "facet_worker_step_rows", "Tokens computed in a step.",
                              kRowBuckets)),
      running_(Gauges(registry, "facet_worker_running_sequences", "Sequences that hold a slot.")
                   .Add({})),
      waiting_(Gauges(registry, "facet_worker_waiting_sequences", "Sequences that wait for a slot.")
                   .Add({})),
      streams_(Gauges(registry, "facet_worker_router_streams", "Routers with a session.").Add({})),
      prompt_tokens_(Counters(registry, "facet_worker_prompt_tokens_total",
                              "Prompt tokens computed, recomputation not counted.")
                         .Add({})),
      output_tokens_(
          Counters(registry, "facet_worker_output_tokens_total", "Tokens sampled.").Add({})),
      preemptions_(Counters(registry, "facet_worker_preemptions_total",
                            "Sequences that lost their KV blocks to older ones.")
                       .Add({})),
      sequences_(Counters(registry, "facet_worker_sequences_total",
                          "Sequences that ended, by how they ended.")) {
  auto& parts = Counters(registry, "facet_worker_step_part_seconds_total",
                         "Time of this rank's steps: computing, moving and adding partial results, "
                         "and waiting for other ranks.");
  for (int part = 0; part < 3; ++part)
    part_seconds_[part] = &parts.Add({{"part", kPartNames[part]}});
  auto& head_rows = Counters(registry, "facet_worker_head_rows_total",
                             "Rows of the output layer, per token: asked about; of these, first "
                             "read in part; and of these, then read whole.");
  for (int i = 0; i < 3; ++i) head_rows_[i] = &head_rows.Add({{"reads", kHeadNames[i]}});
  auto& used = Gauges(registry, "facet_worker_kv_blocks_used", "KV blocks that sequences hold.");
  auto& total = Gauges(registry, "facet_worker_kv_blocks", "KV blocks there are.");
  for (int pool = 0; pool < kBlockPools; ++pool) {
    kv_blocks_used_[pool] = &used.Add({{"pool", kPoolNames[pool]}});
    kv_blocks_total_[pool] = &total.Add({{"pool", kPoolNames[pool]}});
  }
}

void WorkerMetrics::SetRank(int rank, int world, std::string_view device,
                            const RankMemory& memory) {
  info_
      .Add({{"rank", std::to_string(rank)},
            {"world", std::to_string(world)},
            {"device", std::string(device)}})
      .Set(1);
  weight_bytes_.Set(static_cast<double>(memory.weight_bytes));
  slice_bytes_.Set(static_cast<double>(memory.slice_bytes));
  kv_bytes_.Set(static_cast<double>(memory.kv_bytes));
}

void WorkerMetrics::SetStartUpPhase(std::string_view phase, double seconds) {
  start_up_seconds_.Add({{"phase", std::string(phase)}}).Set(seconds);
}

void WorkerMetrics::AddTimes(const StepTimes& times) {
  steps_.Increment(static_cast<double>(times.steps));
  const double parts[3] = {times.compute_s, times.collective_s, times.wait_s};
  for (int part = 0; part < 3; ++part) part_seconds_[part]->Increment(parts[part]);
  const int64_t rows[3] = {times.head.rows, times.head.screened, times.head.completed};
  for (int i = 0; i < 3; ++i) head_rows_[i]->Increment(static_cast<double>(rows[i]));
}

void WorkerMetrics::AddStep(double seconds, int64_t rows) {
  step_seconds_.Observe(seconds);
  step_rows_.Observe(static_cast<double>(rows));
}

void WorkerMetrics::SetEngineStats(const EngineStats& stats) {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    kv_blocks_used_[pool]->Set(stats.blocks_used[pool]);
    kv_blocks_total_[pool]->Set(stats.blocks_total[pool]);
  }
  running_.Set(stats.running);
  waiting_.Set(stats.waiting);
  prompt_tokens_.Increment(
      static_cast<double>(stats.prompt_tokens_done - last_.prompt_tokens_done));
  output_tokens_.Increment(
      static_cast<double>(stats.output_tokens_done - last_.output_tokens_done));
  preemptions_.Increment(static_cast<double>(stats.preemptions - last_.preemptions));
  last_ = stats;
}

void WorkerMetrics::AddFinish(EngineFinish finish) {
  sequences_.Add({{"finish", FinishName(finish)}}).Increment();
}

void WorkerMetrics::AddRefusal() { sequences_.Add({{"finish", "refused"}}).Increment(); }

void WorkerMetrics::SetStreams(int streams) { streams_.Set(streams); }

}  // namespace facet
