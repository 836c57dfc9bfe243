// Where the time of a step goes: one group of ranks in this process (a thread or more per rank),
// a real model file, and for each kind of step the seconds, packed bytes and operations of every
// operation on rank 0. Steps are the forward pass and a greedy look at the logits.
//
//   step_bench MODEL.gguf [--world=2] [--threads=1] [--isa=avx2] [--screened_head=false]
//              [--packed_cache=FOLDER] [--seconds=2] [STEP ...]
//
// A STEP is ROWSxSEQUENCES@CONTEXT: 1x8@512 decodes one token of 8 sequences after 512 others,
// 512x1@0 is a prefill. The contexts' keys and values are random numbers, written before the first
// step: memory that was never written would be read from one page. What is printed is the median
// step by the clock; operations are means of the processor time of the rank's own thread, which
// other processes on the machine disturb less.

#include <time.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/check.h"
#include "kernels/collectives/local.h"
#include "kernels/cpu/cpu_device.h"
#include "shard_worker/model/forward.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/weights.h"
#include "shard_worker/runtime/profiled_device.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kBlockTokens = 32;
constexpr int kRowsMax = 512;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

struct StepKind {
  int rows = 1;
  int sequences = 1;
  int context = 0;
};

struct Options {
  std::string model;
  int world = 2;
  int threads = 1;
  CpuDeviceOptions::Isa isa = CpuDeviceOptions::kAuto;
  bool screened_head = true;
  std::string packed_cache;  // empty: weights are packed into memory of their own
  double seconds = 2;
  std::vector<StepKind> steps;
};

int ToInt(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  FACET_CHECK(error == std::errc() && end == text.data() + text.size(), "not a number: {}", text);
  return value;
}

StepKind ParseStep(std::string_view text) {
  const size_t x = text.find('x');
  const size_t at = text.find('@');
  FACET_CHECK(x < at && at != text.npos, "a step is ROWSxSEQUENCES@CONTEXT, not {}", text);
  const StepKind kind = {ToInt(text.substr(0, x)), ToInt(text.substr(x + 1, at - x - 1)),
                         ToInt(text.substr(at + 1))};
  FACET_CHECK(kind.rows >= 1 && kind.sequences >= 1 && kind.rows * kind.sequences <= kRowsMax,
              "{}: 1 to {} rows", text, kRowsMax);
  return kind;
}

Options ParseArguments(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view text = argv[i];
    const std::string_view value = text.substr(std::min(text.size(), text.find('=') + 1));
    if (text.starts_with("--world=")) {
      options.world = ToInt(value);
    } else if (text.starts_with("--threads=")) {
      options.threads = ToInt(value);
    } else if (text.starts_with("--isa=")) {
      options.isa = value == "avx2" ? CpuDeviceOptions::kAvx2 : CpuDeviceOptions::kAvx512;
    } else if (text.starts_with("--packed_cache=")) {
      options.packed_cache = value;
    } else if (text == "--screened_head=false") {
      options.screened_head = false;
    } else if (text.starts_with("--seconds=")) {
      options.seconds = std::atof(std::string(value).c_str());
    } else if (options.model.empty()) {
      options.model = text;
    } else {
      options.steps.push_back(ParseStep(text));
    }
  }
  FACET_CHECK(!options.model.empty(), "which model?");
  if (options.steps.empty()) {
    for (const char* step : {"1x1@512", "1x8@512", "1x32@512", "512x1@0"}) {
      options.steps.push_back(ParseStep(step));
    }
  }
  return options;
}

// One rank with room for the KV of every kind of step.
class BenchRank {
 public:
  BenchRank(const Options& options, const GgufModel& model, const ModelSpec& spec,
            const ShardPlan& plan, int rank)
      : spec_(spec),
        plan_(plan),
        rank_(rank),
        device_(*MakeCpuDevice({options.threads, options.isa}), ThreadSeconds),
        files_({.folder = options.packed_cache}),
        cache_{.files = &files_, .load_threads = options.threads, .pack_threads = 2},
        weights_(*LoadWeights(model, spec, plan, rank, &device_, options.screened_head, {},
                              options.packed_cache.empty() ? nullptr : &cache_)),
        forward_(*Forward::Create(spec, plan, rank, weights_, &device_, kRowsMax)) {
    device_.Label(weights_);
    device_.Enable(true);
    int blocks = 0;
    for (const StepKind& kind : options.steps) blocks = std::max(blocks, BlocksOf(kind));
    auto pools = forward_->pools();
    for (KvPoolSpec& pool : pools) {
      pool.blocks = pool.layers > 0 ? blocks : 0;
      pool.block_tokens = kBlockTokens;
    }
    FACET_CHECK(device_.AllocateKv(pools).ok());
    for (const LayerSpec& layer : spec.layers) window_ = std::max(window_, layer.window);
    MakeVectors();
    table_.resize(static_cast<size_t>(blocks));
    std::iota(table_.begin(), table_.end(), 0);
  }

  ProfiledDevice& device() { return device_; }

  // Writes all keys and values that steps of the kind look back at.
  void FillContext(const StepKind& kind) {
    const auto pools = forward_->pools();
    for (int pool = 0; pool < kKvPools; ++pool) {
      const KvPoolSpec& spec = pools[static_cast<size_t>(pool)];
      if (spec.layers == 0) continue;
      const int64_t first = pool == kWindowPool ? std::max<int64_t>(0, kind.context - window_) : 0;
      for (int i = 0; i < kind.sequences; ++i) {
        for (int64_t at = first; at < kind.context; at += kRowsMax) {
          const int rows = static_cast<int>(std::min<int64_t>(kRowsMax, kind.context - at));
          const std::span<const int32_t> table = TableOf(kind, i);
          Store(pool, spec, {0, rows, at, {table, table}});
        }
      }
    }
  }

  void Step(const StepKind& kind, Communicator* communicator) {
    std::vector<SequenceRun> runs;
    std::vector<TokenId> tokens;
    std::vector<int32_t> last_rows;
    for (int i = 0; i < kind.sequences; ++i) {
      const std::span<const int32_t> table = TableOf(kind, i);
      runs.push_back({i * kind.rows, kind.rows, kind.context, {table, table}});
      for (int row = 0; row < kind.rows; ++row) tokens.push_back(100 + 37 * (row + i) % 5000);
      last_rows.push_back((i + 1) * kind.rows - 1);
    }
    const StepLayout layout{kind.rows * kind.sequences, runs};
    const absl::Status status = forward_->Run(layout, tokens, last_rows, communicator);
    FACET_CHECK(status.ok(), "{}", status.ToString());
    LookAtLogits(last_rows);
  }

 private:
  static int BlocksOf(const StepKind& kind) {
    return kind.sequences * ((kind.context + kind.rows + kBlockTokens - 1) / kBlockTokens);
  }

  std::span<const int32_t> TableOf(const StepKind& kind, int sequence) const {
    const auto blocks = static_cast<size_t>(BlocksOf(kind) / kind.sequences);
    return std::span(table_).subspan(static_cast<size_t>(sequence) * blocks, blocks);
  }

  // kRowsMax keys and values of a layer of any pool.
  void MakeVectors() {
    int64_t size = 0;
    for (const KvPoolSpec& spec : forward_->pools()) {
      size = std::max(size, int64_t{2} * kRowsMax * spec.kv_heads * spec.head_dim);
    }
    std::mt19937 random(1);
    std::uniform_real_distribution<float> element(-1, 1);
    std::vector<float> values(static_cast<size_t>(size));
    for (float& value : values) value = element(random);
    vectors_ = *device_.AllocateFloats(size);
    device_.CopyIn(values, vectors_);
  }

  // Stores keys and values of a run's positions in all layers of a pool.
  void Store(int pool, const KvPoolSpec& spec, const SequenceRun& run) {
    const StepLayout layout{run.rows, std::span(&run, 1)};
    device_.BeginStep(layout);
    AttentionSpec attention;  // no query heads, no rotation
    attention.pool = pool;
    attention.kv_heads = spec.kv_heads;
    attention.head_dim = spec.head_dim;
    for (int layer = 0; layer < spec.layers; ++layer) {
      attention.pool_layer = layer;
      device_.RopeAndStore(attention, vectors_);
    }
  }

  void LookAtLogits(std::span<const int32_t> rows) {
    const VocabularySlices slices = plan_.Slices(rank_);
    for (size_t first = 0; first < rows.size(); first += kLogitRowsMax) {
      const auto some = rows.subspan(first, std::min<size_t>(kLogitRowsMax, rows.size() - first));
      const std::vector<CandidateQuery> greedy(some.size());
      std::vector<CandidateReply> replies(some.size());
      forward_->Search(some, slices, greedy, replies);
    }
  }

  const ModelSpec& spec_;
  const ShardPlan& plan_;
  const int rank_;
  ProfiledDevice device_;
  PackedCache files_;
  WeightCache cache_;
  Weights weights_;
  std::unique_ptr<Forward> forward_;
  std::vector<int32_t> table_;
  int64_t window_ = 0;
  Floats vectors_;  // what contexts are filled with
};

void Print(const StepKind& kind, std::vector<double> steps, const Communicator::Times& collectives,
           const StepProfile& profile) {
  std::sort(steps.begin(), steps.end());
  const double median = steps[steps.size() / 2];
  const double count = static_cast<double>(steps.size());
  fmt::print("{}x{}@{}: {:.3f} ms (best {:.3f}, {} steps), {:.1f} tokens/s\n", kind.rows,
             kind.sequences, kind.context, median * 1e3, steps.front() * 1e3, steps.size(),
             kind.rows * kind.sequences / median);
  fmt::print("  {:<18}{:>7}{:>9}{:>9}{:>9}{:>9}{:>9}\n", "operation", "calls", "ms", "MB", "GB/s",
             "GOP", "GOP/s");
  for (int i = 0; i < kStepOperations; ++i) {
    const auto operation = static_cast<StepOperation>(i);
    const OperationTotals& totals = profile[operation];
    if (totals.calls == 0) continue;
    fmt::print("  {:<18}{:>7.0f}{:>9.3f}{:>9.2f}{:>9.1f}{:>9.3f}{:>9.0f}\n", NameOf(operation),
               static_cast<double>(totals.calls) / count, totals.seconds / count * 1e3,
               totals.bytes / count * 1e-6, totals.bytes / totals.seconds * 1e-9,
               totals.operations / count * 1e-9, totals.operations / totals.seconds * 1e-9);
  }
  fmt::print("  {:<25}{:>9.3f}\n  {:<25}{:>9.3f}\n", "moving and adding",
             collectives.work_s / count * 1e3, "waiting for peers",
             collectives.wait_s / count * 1e3);
}

// Rank 0 decides when it is enough; the others learn it from a broadcast before each step.
void RunRank(const Options& options, BenchRank* rank, Communicator* communicator) {
  uint64_t number = 0;
  for (const StepKind& kind : options.steps) {
    rank->FillContext(kind);
    std::vector<double> times;
    Clock::time_point begin;
    for (int i = 0;; ++i) {
      if (i == 2) {  // the first ones size buffers and touch pages
        begin = Clock::now();
        times.clear();
        rank->device().Take();
        communicator->TakeTimes();
      }
      communicator->SetStep(++number);
      std::vector<std::byte> go(
          1, static_cast<std::byte>(i < 7 || SecondsSince(begin) < options.seconds));
      FACET_CHECK(communicator->Broadcast(&go).ok());
      if (go[0] == std::byte{0}) break;
      const Clock::time_point start = Clock::now();
      rank->Step(kind, communicator);
      times.push_back(SecondsSince(start));
    }
    const Communicator::Times collectives = communicator->TakeTimes();
    if (communicator->rank() == 0) {
      Print(kind, times, collectives, rank->device().Take());
    }
  }
}

int Main(int argc, char** argv) {
  const Options options = ParseArguments(argc, argv);
  const GgufModel model = *GgufModel::Open(options.model);
  const ModelSpec spec = *ReadModelSpec(model);
  const ShardPlan plan = *ShardPlan::Make(model, spec, options.world);
  std::vector<std::unique_ptr<BenchRank>> ranks;
  for (int rank = 0; rank < options.world; ++rank) {
    ranks.push_back(std::make_unique<BenchRank>(options, model, spec, plan, rank));
  }
  auto communicators = MakeLocalGroup(options.world);
  std::vector<std::thread> threads;
  for (size_t rank = 1; rank < ranks.size(); ++rank) {
    threads.emplace_back(
        [&, rank] { RunRank(options, ranks[rank].get(), communicators[rank].get()); });
  }
  RunRank(options, ranks[0].get(), communicators[0].get());
  for (std::thread& thread : threads) thread.join();
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
