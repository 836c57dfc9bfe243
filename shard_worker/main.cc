// facet-worker: one rank of a group that serves a model. See `facet-worker --help`.

#include <prometheus/registry.h>
#include <pthread.h>
#include <sched.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "serving/flags.h"
#include "serving/log.h"
#include "serving/metrics_listener.h"
#include "serving/progress.h"
#include "serving/pulse.h"
#include "serving/shutdown.h"
#include "shard_worker/runtime/rank.h"
#include "shard_worker/service/energy_watch.h"
#include "shard_worker/service/follower.h"
#include "shard_worker/service/leader.h"
#include "shard_worker/service/worker_metrics.h"
#include "shard_worker/service/worker_options.h"

ABSL_FLAG(
    std::string, model, "",
    "The model's GGUF file; of a model in several files, the first. All ranks of a group read "
    "the same file and keep their slice of it. Required.");
ABSL_FLAG(int, rank, 0, "Which rank of its group this process is. Rank 0 is the leader.");
ABSL_FLAG(int, world, 1, "How many ranks the group has: the tensor-parallel degree.");
ABSL_FLAG(std::string, leader, "",
          "Rank 0's --listen address, for the other ranks: host:port or unix:/path.");
ABSL_FLAG(
    std::string, listen, "0.0.0.0:8480",
    "Where the leader serves routers and its ranks: host:port (port 0: any free one, which is "
    "logged) or unix:/path.");
ABSL_FLAG(std::string, address_file, "",
          "The leader writes the address it listens on to this file, for a launcher.");
ABSL_FLAG(std::string, collective, "auto",
          "How the ranks of a group exchange data, as rank 0 says for all: shm (one host, network "
          "namespace and user), tcp, nccl (between GPUs, beside shm or tcp for what the hosts "
          "exchange), or auto: shm where all ranks can, else tcp, and nccl beside it where all "
          "have it and a GPU of their own.");
ABSL_FLAG(
    std::string, collective_listen, "",
    "Where this rank waits for its peers over tcp while the group forms, host:port (port 0: any "
    "free one); empty: any free port, of loopback if the leader is there, else of all interfaces. "
    "What ranks send each other is not encrypted.");
ABSL_FLAG(std::string, collective_address, "",
          "How other ranks reach --collective_listen, host or host:port; empty: its own host, or "
          "the one that this rank and its leader see each other at.");
ABSL_FLAG(std::string, metrics_address, "0.0.0.0", "Where the metrics port listens.");
ABSL_FLAG(
    int, metrics_port, -1,
    "Port of /metrics (Prometheus) and /healthz; 0: any free one, which is logged; -1: none.");
ABSL_FLAG(int, threads, 0, "Compute threads of this rank; 0: one per processor it may run on.");
ABSL_FLAG(
    std::string, pin, "auto",
    "Which processors the compute threads run on: cores (each thread has one of its own, a rank's "
    "are on one NUMA node where they fit), node (those of the rank's NUMA node), off (any), or "
    "auto: cores where the ranks of this host take most of them, else node where there are "
    "several, else off. Packed weights are moved to a rank's node.");
ABSL_FLAG(
    std::string, host_share, "",
    "K/N: this rank is number K, from 0, of N with as many threads that share the processors it "
    "may run on; a launcher says so. Empty: not known. Then --pin=auto is off, and --pin=cores and "
    "node take the rank for the only one, which is right in a control group of its own.");
ABSL_FLAG(std::string, device, "auto",
          "What computes: auto (a GPU if libfacet_cuda.so beside this program finds one, else the "
          "CPU), cuda or cuda:N, cpu, avx512, avx2, or reference (slow and simple, for "
          "comparison).");
ABSL_FLAG(
    std::string, arithmetic, "canonical",
    "How products are computed: canonical (a request gives the same bits alone, in any batch, "
    "on any number of ranks and after a failover) or fast (GPUs only: matrix-vector kernels "
    "and cuBLASLt, whose bits depend on how many rows a step has, so that tokens may differ "
    "with the load; the same steps give the same bits). Must be the same on all ranks; "
    "requests do not move between groups of different arithmetic.");
ABSL_FLAG(std::string, screened_head, "auto",
          "Whether searches for tokens may leave most of the output layer unread, which changes no "
          "token: auto (where it pays) or off.");
ABSL_FLAG(std::string, packed_cache, "auto",
          "The folder where packed weights are kept, for the next start and for all ranks on this "
          "host: auto ($XDG_CACHE_HOME/facet/packed, else ~/.cache/facet/packed), a path, or off.");
ABSL_FLAG(int64_t, packed_cache_bytes, int64_t{64} << 30,
          "What that folder may hold; the files used longest ago go first.");
ABSL_FLAG(
    bool, profile, false,
    "Sum up from the start what each operation of a step takes, reads and computes "
    "(facet_worker_operation_*); without it, only while a client asks (facet bench --profile).");
ABSL_FLAG(std::string, kv_type, "f16", "How keys and values are stored: f16 or f32.");
ABSL_FLAG(int64_t, kv_tokens, 16384, "Tokens whose keys and values fit, over all sequences.");
ABSL_FLAG(int, context_tokens, 0,
          "Prompt and output of a sequence, at most; 0: what the model was trained for.");
ABSL_FLAG(int, step_tokens, 512, "Tokens that one step computes, at most.");
ABSL_FLAG(int, prefill_chunk, 0,
          "Tokens of one prompt in one step, at most; 0: on processors 256, on GPUs as many as "
          "--step_tokens.");
ABSL_FLAG(
    int, mixed_prefill, 128,
    "Prompt tokens in a step that also decodes, at most; 0: --step_tokens. Half of it while few "
    "streams decode. Less makes the other streams smoother and long prompts a little slower.");
ABSL_FLAG(int, sequences, 64, "Sequences that run at once, at most.");
ABSL_FLAG(std::string, model_name, "",
          "What requests call the model; empty: the file's name without its extension.");
ABSL_FLAG(bool, allow_logits_digest, false,
          "Allow requests that hash every logit: slow, for tests.");
ABSL_FLAG(double, join_s, 300, "How long the leader waits for the other ranks at first.");
ABSL_FLAG(double, rejoin_s, 30,
          "How long the leader waits for ranks that were lost, and a rank for a leader that does "
          "not answer.");
ABSL_FLAG(
    int, steps_max, 0,
    "Steps under way at a time: 2 prepares a step while the one before runs, which pays where "
    "a processor is left for it, and on a GPU, or on several that exchange data themselves, "
    "launches it, too; 1 does not. 0: 2 on such GPUs, else 1.");
ABSL_FLAG(double, news_period_ms, 5,
          "How far apart routers are told of tokens: those that several steps sample within it go "
          "in one message. A sequence's first token and its end never wait; 0: no token does.");
ABSL_FLAG(
    double, news_period_max_ms, 40,
    "The same for a router with many sequences, which make a message dearer: from the fifth on "
    "each adds a quarter of --news_period_ms, up to this. 0: none does.");
ABSL_FLAG(std::string, speculation, "auto",
          "Whether steps may carry guesses of a sequence's next tokens, found in what it has said "
          "before, which changes no token: auto (where it pays) or off.");
ABSL_FLAG(int, speculation_tokens, 8, "Guessed tokens of a sequence in one step, at most.");
ABSL_FLAG(double, drain_s, 30, "After SIGTERM, how long running sequences may go on.");
ABSL_FLAG(bool, quiet, false, "Log warnings and errors only, and draw no progress.");

namespace facet {
namespace {

constexpr char kUsage[] =
    R"(facet-worker: one rank of a group that serves a model to facet-router.

A group is one copy of a model. With --world=N it is split over N processes, each of which holds
and computes a slice of every layer; all answer as one. Rank 0, the leader, schedules and speaks to
routers; the others name it with --leader. Options that decide what is computed (--arithmetic,
--kv_type, --kv_tokens, --context_tokens, --step_tokens, --sequences) must be the same on all ranks.

  facet-worker --model=gemma.gguf --listen=localhost:8480
  facet-worker --model=gemma.gguf --world=2 --rank=0 --listen=unix:/tmp/group.sock
  facet-worker --model=gemma.gguf --world=2 --rank=1 --leader=unix:/tmp/group.sock

Ranks of one host share memory; ranks on several hosts exchange data over TCP; GPUs use NCCL where
it is installed (--collective):

  host-a$ facet-worker --model=gemma.gguf --world=2 --rank=0 --listen=0.0.0.0:8480
  host-b$ facet-worker --model=gemma.gguf --world=2 --rank=1 --leader=host-a:8480

SIGTERM or SIGINT: the leader takes nothing new, finishes what runs (--drain_s) and lets the other
ranks go. When a rank dies or hangs, its group's requests end with UNAVAILABLE; the other ranks keep
their weights and wait for it (--rejoin_s), so start it again. If it stays away they exit with 1.
Exit codes: 0 stopped, 1 failed, 2 misused.)";

constexpr int kFailed = 1;
constexpr int kMisused = 2;
constexpr int kHostRanksMax = 4096;

int UsableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

absl::StatusOr<std::chrono::milliseconds> Duration(const char* flag, double seconds) {
  if (std::isfinite(seconds) && seconds >= 0 && seconds <= 1e6) {
    return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  }
  return InvalidArgument("--{}: {} s is not in [0, 1e6]", flag, seconds);
}

absl::StatusOr<std::chrono::microseconds> NewsPeriod(const char* flag, double milliseconds) {
  if (milliseconds >= 0 && milliseconds <= 1000) {
    return std::chrono::microseconds(std::llround(milliseconds * 1000));
  }
  return InvalidArgument("--{}: {} is not in [0, 1000]", flag, milliseconds);
}

// Empty where --packed_cache says off, or auto and there is no home.
std::string PackedCacheFolder() {
  const std::string folder = absl::GetFlag(FLAGS_packed_cache);
  if (folder == "off") return "";
  if (folder != "auto") return folder;
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache != nullptr && *cache == '/') {
    return std::string(cache) + "/facet/packed";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return std::string(home) + "/.cache/facet/packed";
  }
  return "";
}

absl::StatusOr<HostShare> HostShareFromFlags() {
  const std::string text = absl::GetFlag(FLAGS_host_share);
  HostShare share;
  if (text.empty()) return share;
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &share.index) ||
      !absl::SimpleAtoi(parts[1], &share.count) || share.index < 0 || share.index >= share.count ||
      share.count > kHostRanksMax) {
    return InvalidArgument("--host_share: '{}' is not K/N with 0 <= K < N <= {}", text,
                           kHostRanksMax);
  }
  return share;
}

absl::StatusOr<PlacementOptions> PlacementFromFlags() {
  PlacementOptions placement;
  const std::string pin = absl::GetFlag(FLAGS_pin);
  if (pin != "auto" && pin != "cores" && pin != "node" && pin != "off") {
    return InvalidArgument("--pin: '{}' is none of auto, cores, node and off", pin);
  }
  placement.pinning = pin == "auto"    ? Pinning::kAuto
                      : pin == "cores" ? Pinning::kCores
                      : pin == "node"  ? Pinning::kNode
                                       : Pinning::kOff;
  FACET_ASSIGN_OR_RETURN(placement.share, HostShareFromFlags());
  return placement;
}

absl::StatusOr<RankOptions> RankOptionsFromFlags() {
  RankOptions rank;
  rank.model_path = absl::GetFlag(FLAGS_model);
  rank.rank = absl::GetFlag(FLAGS_rank);
  rank.world = absl::GetFlag(FLAGS_world);
  rank.threads = absl::GetFlag(FLAGS_threads);
  if (rank.threads == 0) rank.threads = UsableProcessors();
  FACET_ASSIGN_OR_RETURN(rank.placement, PlacementFromFlags());
  rank.device = absl::GetFlag(FLAGS_device);
  rank.context_tokens = absl::GetFlag(FLAGS_context_tokens);
  rank.kv_tokens = absl::GetFlag(FLAGS_kv_tokens);
  rank.step_tokens_max = absl::GetFlag(FLAGS_step_tokens);
  rank.prefill_chunk_max = absl::GetFlag(FLAGS_prefill_chunk);
  rank.mixed_prefill_max = absl::GetFlag(FLAGS_mixed_prefill);
  rank.sequences_max = absl::GetFlag(FLAGS_sequences);
  const std::string arithmetic = absl::GetFlag(FLAGS_arithmetic);
  if (arithmetic != "canonical" && arithmetic != "fast") {
    return InvalidArgument("--arithmetic: '{}' is neither canonical nor fast", arithmetic);
  }
  rank.fast_arithmetic = arithmetic == "fast";
  const std::string screened_head = absl::GetFlag(FLAGS_screened_head);
  if (screened_head != "auto" && screened_head != "off") {
    return InvalidArgument("--screened_head: '{}' is neither auto nor off", screened_head);
  }
  rank.screened_head = screened_head == "auto";
  rank.packed_cache.folder = PackedCacheFolder();
  rank.packed_cache.bytes_max = absl::GetFlag(FLAGS_packed_cache_bytes);
  rank.profile = absl::GetFlag(FLAGS_profile);
  const std::string kv_type = absl::GetFlag(FLAGS_kv_type);
  if (kv_type != "f16" && kv_type != "f32") {
    return InvalidArgument("--kv_type: '{}' is neither f16 nor f32", kv_type);
  }
  rank.kv_type = kv_type == "f16" ? KvType::kF16 : KvType::kF32;
  if (rank.model_path.empty()) return InvalidArgument("--model is required");
  if (rank.world < 1) return InvalidArgument("--world: {} is not positive", rank.world);
  if (rank.rank < 0 || rank.rank >= rank.world) {
    return InvalidArgument("--rank: {} is not in [0, {}), as --world={} asks", rank.rank,
                           rank.world, rank.world);
  }
  return rank;
}

absl::StatusOr<SpeculationOptions> SpeculationFromFlags() {
  SpeculationOptions speculation;
  const std::string mode = absl::GetFlag(FLAGS_speculation);
  const int tokens = absl::GetFlag(FLAGS_speculation_tokens);
  if (mode != "auto" && mode != "off") {
    return InvalidArgument("--speculation: '{}' is neither auto nor off", mode);
  }
  if (tokens < 1 || tokens > speculation.step_rows_max) {
    return InvalidArgument("--speculation_tokens: {} is not in [1, {}]", tokens,
                           speculation.step_rows_max);
  }
  if (mode == "auto") speculation.proposals_max = tokens;
  return speculation;
}

absl::StatusOr<CollectiveOptions> CollectiveFromFlags() {
  CollectiveOptions collective;
  const std::string kind = absl::GetFlag(FLAGS_collective);
  if (kind != "auto" && kind != "shm" && kind != "tcp" && kind != "nccl") {
    return InvalidArgument("--collective: '{}' is none of auto, shm, tcp and nccl", kind);
  }
  collective.kind = kind == "shm"    ? CollectiveKind::kShm
                    : kind == "tcp"  ? CollectiveKind::kTcp
                    : kind == "nccl" ? CollectiveKind::kNccl
                                     : CollectiveKind::kAuto;
  collective.listen = absl::GetFlag(FLAGS_collective_listen);
  collective.address = absl::GetFlag(FLAGS_collective_address);
  return collective;
}

absl::StatusOr<WorkerOptions> OptionsFromFlags() {
  WorkerOptions options;
  FACET_ASSIGN_OR_RETURN(options.rank, RankOptionsFromFlags());
  options.canary.exact = !options.rank.fast_arithmetic;
  options.server.listen = absl::GetFlag(FLAGS_listen);
  options.server.address_file = absl::GetFlag(FLAGS_address_file);
  options.link.leader = absl::GetFlag(FLAGS_leader);
  FACET_ASSIGN_OR_RETURN(options.collective, CollectiveFromFlags());
  options.model_name = absl::GetFlag(FLAGS_model_name);
  if (options.model_name.empty()) {
    options.model_name = std::filesystem::path(options.rank.model_path).stem();
  }
  options.allow_logits_digest = absl::GetFlag(FLAGS_allow_logits_digest);
  FACET_ASSIGN_OR_RETURN(options.join, Duration("join_s", absl::GetFlag(FLAGS_join_s)));
  FACET_ASSIGN_OR_RETURN(options.rejoin, Duration("rejoin_s", absl::GetFlag(FLAGS_rejoin_s)));
  options.link.patience = options.rejoin;
  options.steps_max = absl::GetFlag(FLAGS_steps_max);
  if (options.steps_max < 0 || options.steps_max > 2) {
    return InvalidArgument("--steps_max: {} is not in [0, 2]", options.steps_max);
  }
  FACET_ASSIGN_OR_RETURN(options.news_period,
                         NewsPeriod("news_period_ms", absl::GetFlag(FLAGS_news_period_ms)));
  FACET_ASSIGN_OR_RETURN(options.news_period_max,
                         NewsPeriod("news_period_max_ms", absl::GetFlag(FLAGS_news_period_max_ms)));
  FACET_ASSIGN_OR_RETURN(options.speculation, SpeculationFromFlags());
  FACET_ASSIGN_OR_RETURN(options.drain, Duration("drain_s", absl::GetFlag(FLAGS_drain_s)));
  if (options.rank.rank > 0 && options.link.leader.empty()) {
    return InvalidArgument("--leader is required with --rank={}", options.rank.rank);
  }
  return options;
}

absl::StatusOr<std::unique_ptr<MetricsListener>> StartMetrics(
    std::shared_ptr<prometheus::Registry> registry, const Pulse* pulse) {
  const int port = absl::GetFlag(FLAGS_metrics_port);
  if (port < 0) return nullptr;
  MetricsListenerOptions options;
  options.address = absl::GetFlag(FLAGS_metrics_address);
  options.age = [pulse] { return pulse->Age(); };
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<MetricsListener> listener,
                         MetricsListener::Start(port, std::move(registry), options));
  spdlog::info("metrics on port {}", listener->port());
  return listener;
}

absl::StatusOr<std::unique_ptr<Rank>> LoadRank(RankOptions options, EnergyWatch* energy) {
  std::optional<Progress> progress;
  options.notice = [](std::string_view sentence) { spdlog::info("{}", sentence); };
  if (!absl::GetFlag(FLAGS_quiet)) {
    options.progress = [&](int64_t done, int64_t total) {
      if (done == 0 || !progress) progress.emplace("packing", total);
      progress->Update(done);
      if (done == total) progress->Finish();
    };
  }
  options.warn = [](std::string_view what) { spdlog::warn("{}", what); };
  absl::StatusOr<std::unique_ptr<Rank>> rank = Rank::Load(options);
  if (rank.ok()) energy->Start((*rank)->gpu_bus_id());
  return rank;
}

absl::Status Lead(const WorkerOptions& options, WorkerMetrics* metrics, EnergyWatch* energy,
                  Pulse* pulse, std::stop_token stop) {
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<Leader> leader,
                         Leader::Start(options, metrics, pulse));
  return leader->Serve([&] { return LoadRank(options.rank, energy); }, stop);
}

absl::Status Follow(const WorkerOptions& options, WorkerMetrics* metrics, EnergyWatch* energy,
                    Pulse* pulse, std::stop_token stop) {
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<Rank> rank, LoadRank(options.rank, energy));
  return RunFollower(options, rank.get(), metrics, pulse, stop);
}

absl::Status Work(const WorkerOptions& options, const ShutdownSignal& shutdown,
                  std::stop_source stop) {
  const auto registry = std::make_shared<prometheus::Registry>();
  WorkerMetrics metrics(registry.get());
  EnergyWatch energy({}, &metrics);
  Pulse pulse;
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<MetricsListener> listener,
                         StartMetrics(registry, &pulse));
  const absl::Status status = options.rank.rank == 0
                                  ? Lead(options, &metrics, &energy, &pulse, stop.get_token())
                                  : Follow(options, &metrics, &energy, &pulse, stop.get_token());
  // Asked to stop before the group stood: nothing is lost.
  if (absl::IsCancelled(status) && shutdown.Requested()) return absl::OkStatus();
  return status;
}

int Main(int argc, char** argv) {
  // Debian's Abseil looks for lock cycles at every lock, gRPC's included, under one global lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  ParseFlagsOrExit(argc, argv, kUsage, 0);
  ShutdownSignal shutdown;  // before any other thread
  const absl::StatusOr<WorkerOptions> options = OptionsFromFlags();
  if (!options.ok()) {
    fmt::print(stderr, "facet-worker: {}; see --help\n", MessageOf(options.status()));
    return kMisused;
  }
  const std::string process = fmt::format("facet-worker[{}]", options->rank.rank);
  if (!InitLog(process, absl::GetFlag(FLAGS_quiet) ? "warning" : "info").ok()) return kFailed;

  std::stop_source stop;
  std::thread forward([&] {
    pthread_setname_np(pthread_self(), "shutdown");
    shutdown.Wait();
    stop.request_stop();
  });
  const absl::Status status = Work(*options, shutdown, stop);
  shutdown.Request();
  forward.join();
  if (status.ok()) return 0;
  spdlog::error("{}", MessageOf(status));
  return kFailed;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
