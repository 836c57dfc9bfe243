// A step allocates nothing once its kind has been seen: what the device's operations and the
// forward pass need is kept from step to step.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <thread>

#include <fmt/format.h>

#include "kernels/collectives/local.h"
#include "kernels/cpu/cpu_device.h"
#include "shard_worker/model/forward.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

void* Allocate(size_t size, size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1);
  void* memory = nullptr;
  if (posix_memalign(&memory, std::max(alignment, sizeof(void*)), std::max<size_t>(size, 1)) != 0) {
    std::abort();
  }
  return memory;
}

}  // namespace

void* operator new(size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(size_t size, std::align_val_t alignment) {
  return Allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

namespace facet {
namespace {

constexpr int kBlockTokens = 32;
constexpr int kBlocks = 16;  // of a sequence
constexpr int kRowsMax = 64;

struct StepKind {
  int rows;  // of a sequence
  int sequences;
  int context;
  CandidateQuery query;
};

// One rank with everything that a step is given.
class Stepper {
 public:
  Stepper(const GgufModel& model, const ModelSpec& spec, const ShardPlan& plan, int rank,
          int threads)
      : slices_(plan.Slices(rank)),
        vocabulary_(spec.vocabulary),
        device_(*MakeCpuDevice({.threads = threads})),
        weights_(*LoadWeights(model, spec, plan, rank, device_.get(), true, {})),
        forward_(*Forward::Create(spec, plan, rank, weights_, device_.get(), kRowsMax)) {
    auto pools = forward_->pools();
    for (KvPoolSpec& pool : pools) {
      pool.blocks = pool.layers > 0 ? 8 * kBlocks : 0;
      pool.block_tokens = kBlockTokens;
    }
    EXPECT_TRUE(device_->AllocateKv(pools).ok());
    table_.resize(8 * kBlocks);
    std::iota(table_.begin(), table_.end(), 0);
  }

  void Prepare(const StepKind& kind) {
    runs_.clear();
    tokens_.clear();
    last_rows_.clear();
    for (int i = 0; i < kind.sequences; ++i) {
      const auto table = std::span<const int32_t>(table_).subspan(i * kBlocks, kBlocks);
      runs_.push_back({i * kind.rows, kind.rows, kind.context, {table, table}});
      for (int row = 0; row < kind.rows; ++row) {
        tokens_.push_back(static_cast<TokenId>((7 * row + 31 * i) % vocabulary_));
      }
      last_rows_.push_back((i + 1) * kind.rows - 1);
    }
    queries_.assign(last_rows_.size(), kind.query);
    replies_.resize(last_rows_.size());
  }

  void Run(Communicator* communicator) {
    const StepLayout layout{static_cast<int>(tokens_.size()), runs_};
    if (!forward_->Run(layout, tokens_, last_rows_, communicator).ok()) std::abort();
    forward_->Search(last_rows_, slices_, queries_, replies_);
  }

 private:
  const VocabularySlices slices_;
  const int64_t vocabulary_;
  std::unique_ptr<Device> device_;
  Weights weights_;
  std::unique_ptr<Forward> forward_;
  std::vector<int32_t> table_;
  std::vector<SequenceRun> runs_;
  std::vector<TokenId> tokens_;
  std::vector<int32_t> last_rows_;
  std::vector<CandidateQuery> queries_;
  std::vector<CandidateReply> replies_;
};

class StepMemory : public testing::TestWithParam<const char*> {
 protected:
  // The allocations of all ranks in `steps` equal steps after the first `warm` ones.
  static int64_t Count(const StepKind& kind, int world, int threads, int warm, int steps) {
    const auto model = *GgufModel::Open(fmt::format("tests/golden/tiny/{}.gguf", GetParam()));
    const ModelSpec spec = *ReadModelSpec(model);
    const ShardPlan plan = *ShardPlan::Make(model, spec, world);
    auto communicators = MakeLocalGroup(world);
    std::vector<std::unique_ptr<Stepper>> ranks;
    for (int rank = 0; rank < world; ++rank) {
      ranks.push_back(std::make_unique<Stepper>(model, spec, plan, rank, threads));
      ranks.back()->Prepare(kind);
    }
    allocations = 0;
    const auto run = [&](int rank) {
      for (int i = 0; i < warm + steps; ++i) {
        communicators[rank]->SetStep(static_cast<uint64_t>(i));
        if (!communicators[rank]->Barrier().ok()) std::abort();
        if (rank == 0) counting = i >= warm;
        if (!communicators[rank]->Barrier().ok()) std::abort();
        ranks[rank]->Run(communicators[rank].get());
        if (!communicators[rank]->Barrier().ok()) std::abort();
      }
    };
    std::vector<std::thread> others;
    for (int rank = 1; rank < world; ++rank) others.emplace_back(run, rank);
    run(0);
    counting = false;
    for (std::thread& other : others) other.join();
    return allocations;
  }

  // The same once every thread has taken its first task of each kind, which several threads of a
  // rank decide among themselves: more and more steps go before.
  static int64_t CountOnceWarm(const StepKind& kind, int world, int threads) {
    int64_t count = Count(kind, world, threads, 1, 4);
    for (int warm = 8; threads > 1 && count > 0 && warm <= 512; warm *= 4) {
      count = Count(kind, world, threads, warm, 4);
    }
    return count;
  }
};

TEST_P(StepMemory, StepsAllocateNothing) {
  CandidateQuery greedy;
  CandidateQuery sampled;
  sampled.gumbel = true;
  CandidateQuery summed;
  summed.count = 20;
  summed.sums = true;
  for (const CandidateQuery& query : {greedy, sampled, summed}) {
    for (const StepKind& kind : {StepKind{1, 1, 100, query}, StepKind{1, 8, 300, query},
                                 StepKind{64, 1, 0, query}, StepKind{20, 3, 70, query}}) {
      for (const int world : {1, 2}) {
        for (const int threads : {1, 2}) {
          EXPECT_EQ(CountOnceWarm(kind, world, threads), 0)
              << kind.rows << " rows of " << kind.sequences << ", " << world << " ranks, "
              << threads << " threads, gumbel " << query.gumbel << ", sums " << query.sums;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, StepMemory,
                         testing::Values("gemma3_8h_quantized", "gemma2", "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace facet
