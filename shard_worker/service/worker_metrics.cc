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

const Histogram::BucketBoundaries kRecoveryBuckets = {0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 30};

constexpr const char* kPoolNames[kBlockPools] = {"full", "window"};
constexpr const char* kHeadNames[3] = {"asked", "screened", "completed"};
constexpr const char* kPartNames[3] = {"compute", "collective", "wait"};

// In the order of their enums.
constexpr std::array<const char*, kEngineFinishes> kFinishNames = {"stop", "length", "cancelled",
                                                                   "deadline", "error"};
constexpr std::array<const char*, kLeaderRefusals> kRefusalNames = {"invalid", "unsupported",
                                                                    "queue_full", "draining"};
constexpr std::array<const char*, kBreakCauses> kBreakNames = {"peer_gone", "peer_silent",
                                                               "peer_stuck", "step_failed"};
constexpr std::array<const char*, 2> kStageNames = {"waiting", "running"};
constexpr std::array<const char*, 2> kResultNames = {"right", "wrong"};

// One counter per value of a label, all there from the start, so that rates have a beginning.
template <size_t kCount>
std::array<Counter*, kCount> Labelled(Family<Counter>& family, const char* label,
                                      const std::array<const char*, kCount>& values) {
  std::array<Counter*, kCount> counters;
  for (size_t i = 0; i < kCount; ++i) counters[i] = &family.Add({{label, values[i]}});
  return counters;
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
      profiled_steps_(Counters(registry, "facet_worker_profiled_steps_total",
                               "Steps whose operations were summed up.")
                          .Add({})),
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
      proposed_tokens_(Counters(registry, "facet_worker_proposed_tokens_total",
                                "Output tokens that steps guessed, and checked.")
                           .Add({})),
      accepted_tokens_(Counters(registry, "facet_worker_accepted_tokens_total",
                                "Of the guessed output tokens, those that were right: each saves "
                                "its sequence a step.")
                           .Add({})),
      cached_tokens_(Counters(registry, "facet_worker_cached_prompt_tokens_total",
                              "Prompt tokens not computed thanks to the prefix cache.")
                         .Add({})),
      pending_tokens_(Gauges(registry, "facet_worker_pending_prompt_tokens",
                             "Prompt tokens taken in and not computed.")
                          .Add({})),
      preemptions_(Counters(registry, "facet_worker_preemptions_total",
                            "Sequences that lost their KV blocks to older ones.")
                       .Add({})),
      sequences_(Labelled(Counters(registry, "facet_worker_sequences_total",
                                   "Sequences that ended, by how they ended."),
                          "finish", kFinishNames)),
      refusals_(Labelled(Counters(registry, "facet_worker_refusals_total",
                                  "Sequences that were not taken in, by why."),
                         "reason", kRefusalNames)),
      breaks_(Labelled(
          Counters(registry, "facet_worker_epoch_breaks_total", "Epochs that broke, by why."),
          "cause", kBreakNames)),
      recovery_seconds_(OneHistogram(registry, "facet_worker_recovery_seconds",
                                     "From a broken epoch until the next one stands; on the "
                                     "leader, until it is ready.",
                                     kRecoveryBuckets)),
      step_age_seconds_(Gauges(registry, "facet_worker_step_age_seconds",
                               "How long each rank has stood still in a step, as the leader "
                               "hears.")),
      canaries_(Labelled(
          Counters(registry, "facet_worker_canaries_total", "Canaries that were answered, by how."),
          "result", kResultNames)),
      canary_seconds_(
          Gauges(registry, "facet_worker_canary_seconds", "How long the last canary took.")
              .Add({})),
      gpu_joules_(Counters(registry, "facet_worker_gpu_joules_total",
                           "Energy that this rank's GPU took, idle or not, whoever used it.")),
      gpu_watts_(Gauges(registry, "facet_worker_gpu_watts", "Power of this rank's GPU.")),
      gpu_memory_used_bytes_(Gauges(registry, "facet_worker_gpu_memory_used_bytes",
                                    "Memory of this rank's GPU in use, by anybody.")),
      gpu_memory_bytes_(
          Gauges(registry, "facet_worker_gpu_memory_bytes", "Memory of this rank's GPU.")),
      gpu_celsius_(Gauges(registry, "facet_worker_gpu_celsius", "Temperature of this rank's GPU.")),
      gpu_clock_hertz_(
          Gauges(registry, "facet_worker_gpu_clock_hertz", "Clocks of this rank's GPU.")),
      host_joules_(Counters(registry, "facet_worker_host_joules_total",
                            "Energy that the host's processors and their memory took, idle or not, "
                            "whoever used them; told by one process of a host.")) {
  auto& parts = Counters(registry, "facet_worker_step_part_seconds_total",
                         "Time of this rank's steps: computing, moving and adding partial results, "
                         "and waiting for other ranks.");
  expired_ = Labelled(Counters(registry, "facet_worker_expired_total",
                               "Sequences whose deadline passed, by what they did then."),
                      "stage", kStageNames);
  for (int part = 0; part < 3; ++part)
    part_seconds_[part] = &parts.Add({{"part", kPartNames[part]}});
  auto& head_rows = Counters(registry, "facet_worker_head_rows_total",
                             "Rows of the output layer, per token: asked about; of these, first "
                             "read in part; and of these, then read whole.");
  for (int i = 0; i < 3; ++i) head_rows_[i] = &head_rows.Add({{"reads", kHeadNames[i]}});
  const std::array<Family<Counter>*, 3> operations = {
      &Counters(registry, "facet_worker_operation_seconds_total",
                "Time of each operation in the steps that were profiled."),
      &Counters(registry, "facet_worker_operation_bytes_total",
                "Weights, keys and values that these operations had to read."),
      &Counters(registry, "facet_worker_operation_operations_total",
                "Multiplications and additions of these operations.")};
  for (size_t kind = 0; kind < operations.size(); ++kind) {
    for (int i = 0; i < kStepOperations; ++i) {
      const std::string name(NameOf(static_cast<StepOperation>(i)));
      operations_[kind][static_cast<size_t>(i)] = &operations[kind]->Add({{"op", name}});
    }
  }
  auto& used = Gauges(registry, "facet_worker_kv_blocks_used", "KV blocks that sequences hold.");
  auto& cached = Gauges(registry, "facet_worker_kv_blocks_cached",
                        "KV blocks that no sequence holds and the prefix cache keeps.");
  auto& total = Gauges(registry, "facet_worker_kv_blocks", "KV blocks there are.");
  for (int pool = 0; pool < kBlockPools; ++pool) {
    kv_blocks_used_[pool] = &used.Add({{"pool", kPoolNames[pool]}});
    kv_blocks_cached_[pool] = &cached.Add({{"pool", kPoolNames[pool]}});
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
  if (times.profile.steps > 0) AddProfile(times.profile);
}

void WorkerMetrics::AddProfile(const StepProfile& profile) {
  profiled_steps_.Increment(static_cast<double>(profile.steps));
  for (size_t i = 0; i < profile.operations.size(); ++i) {
    operations_[0][i]->Increment(profile.operations[i].seconds);
    operations_[1][i]->Increment(profile.operations[i].bytes);
    operations_[2][i]->Increment(profile.operations[i].operations);
  }
}

void WorkerMetrics::AddStep(double seconds, int64_t rows) {
  step_seconds_.Observe(seconds);
  step_rows_.Observe(static_cast<double>(rows));
}

void WorkerMetrics::AddBreak(BreakCause cause) { breaks_[static_cast<size_t>(cause)]->Increment(); }

void WorkerMetrics::AddRecovery(double seconds) { recovery_seconds_.Observe(seconds); }

void WorkerMetrics::SetStepAges(const std::vector<TimeUs>& ages) {
  for (size_t rank = 0; rank < ages.size(); ++rank) {
    step_age_seconds_.Add({{"rank", std::to_string(rank)}})
        .Set(static_cast<double>(ages[rank]) * 1e-6);
  }
}

void WorkerMetrics::AddGpu(std::string_view uuid, const GpuReading& reading) {
  const prometheus::Labels gpu = {{"gpu", std::string(uuid)}};
  const auto set = [](Family<Gauge>& family, const prometheus::Labels& labels,
                      const std::optional<double>& value) {
    if (value) family.Add(labels).Set(*value);
  };
  if (reading.joules) gpu_joules_.Add(gpu).Increment(*reading.joules);
  set(gpu_watts_, gpu, reading.watts);
  set(gpu_memory_used_bytes_, gpu, reading.memory_used_bytes);
  set(gpu_memory_bytes_, gpu, reading.memory_bytes);
  set(gpu_celsius_, gpu, reading.celsius);
  set(gpu_clock_hertz_, {{"gpu", std::string(uuid)}, {"clock", "sm"}}, reading.sm_hertz);
  set(gpu_clock_hertz_, {{"gpu", std::string(uuid)}, {"clock", "memory"}}, reading.memory_hertz);
}

void WorkerMetrics::AddHostEnergy(std::string_view host, const std::vector<ZoneEnergy>& zones) {
  for (const ZoneEnergy& zone : zones) {
    host_joules_.Add({{"host", std::string(host)}, {"zone", std::string(zone.zone)}})
        .Increment(zone.joules);
  }
}

void WorkerMetrics::BeginEpoch() { last_ = LeaderStats(); }

void WorkerMetrics::SetStats(const LeaderStats& stats) {
  const auto add = [](Counter& counter, int64_t now, int64_t before) {
    if (now > before) counter.Increment(static_cast<double>(now - before));
  };
  const EngineStats& engine = stats.engine;
  for (int pool = 0; pool < kBlockPools; ++pool) {
    kv_blocks_used_[pool]->Set(engine.blocks_used[pool]);
    kv_blocks_cached_[pool]->Set(engine.blocks_cached[pool]);
    kv_blocks_total_[pool]->Set(engine.blocks_total[pool]);
  }
  running_.Set(engine.running);
  waiting_.Set(engine.waiting);
  streams_.Set(stats.sessions);
  pending_tokens_.Set(static_cast<double>(engine.pending_prompt_tokens));
  add(prompt_tokens_, stats.prompt_tokens_done, last_.prompt_tokens_done);
  add(output_tokens_, stats.output_tokens_done, last_.output_tokens_done);
  add(proposed_tokens_, engine.proposed_tokens, last_.engine.proposed_tokens);
  add(accepted_tokens_, engine.accepted_tokens, last_.engine.accepted_tokens);
  add(cached_tokens_, engine.cached_tokens, last_.engine.cached_tokens);
  add(preemptions_, engine.preemptions, last_.engine.preemptions);
  add(*expired_[0], engine.expired_waiting, last_.engine.expired_waiting);
  add(*expired_[1], engine.expired_running, last_.engine.expired_running);
  for (size_t i = 0; i < kEngineFinishes; ++i) {
    add(*sequences_[i], stats.finishes[i], last_.finishes[i]);
  }
  for (size_t i = 0; i < kLeaderRefusals; ++i) {
    add(*refusals_[i], stats.refusals[i], last_.refusals[i]);
  }
  const auto right = [](const CanaryStats& canary) { return canary.runs - canary.failures; };
  add(*canaries_[0], right(stats.canary), right(last_.canary));
  add(*canaries_[1], stats.canary.failures, last_.canary.failures);
  canary_seconds_.Set(static_cast<double>(stats.canary.duration_us) * 1e-6);
  last_ = stats;
}

}  // namespace facet
