// A step that decodes takes no memory but for its results: what it needs within it is kept from the
// steps before. Counts every allocation of the process.

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "shard_worker/runtime/rank.h"

namespace {
std::atomic<int64_t> allocations = 0;
}  // namespace

// Not inlined: the compiler would find malloc() and delete beside each other and doubt them.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes > 0 ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace facet {
namespace {

constexpr int kWarmUp = 6;
constexpr int kSteps = 12;

// A group on threads, one greedy sequence in it, and its plans by hand.
class Group {
 public:
  explicit Group(int world) {
    std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalGroup(world);
    for (int rank = 0; rank < world; ++rank) {
      RankOptions options;
      options.model_path = "tests/golden/tiny/gemma3_8h_quantized.gguf";
      options.rank = rank;
      options.world = world;
      options.kv_tokens = 256;
      options.step_tokens_max = 16;
      options.sequences_max = 2;
      options.step_timeout = std::chrono::minutes(5);
      absl::StatusOr<std::unique_ptr<Rank>> loaded = Rank::Load(options);
      FACET_CHECK(loaded.ok(), "{}", MessageOf(loaded.status()));
      ranks_.push_back(*std::move(loaded));
      ranks_.back()->Attach(std::move(communicators[static_cast<size_t>(rank)]));
    }
    for (int rank = 1; rank < world; ++rank) {
      followers_.emplace_back([follower = ranks_[static_cast<size_t>(rank)].get()] {
        EXPECT_TRUE(follower->Follow().ok());
      });
    }
    executor_ = ranks_[0]->MakeExecutor();
    plan_.starts.push_back({.slot = SlotId{0}, .sampling = {.temperature = 0}});
    Segment& segment = plan_.segments.emplace_back();
    segment.slot = SlotId{0};
    segment.tokens = {5, 6, 7};
    segment.blocks = {std::vector<int32_t>{0}, std::vector<int32_t>{0}};
    segment.sample = true;
  }
  ~Group() {
    EXPECT_TRUE(ranks_[0]->StopFollowers().ok());
    for (std::thread& follower : followers_) follower.join();
  }

  // The prompt at first, then a token.
  void Step() {
    ++plan_.step;
    const absl::StatusOr<StepResult> result = executor_->Run(plan_);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_EQ(result->segments[0].sampled.size(), 1u);
    plan_.starts.clear();
    Segment& segment = plan_.segments[0];
    segment.first_position += static_cast<int64_t>(segment.tokens.size());
    segment.tokens.assign(1, kSampledToken);
  }

 private:
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<std::thread> followers_;
  std::unique_ptr<Executor> executor_;
  StepPlan plan_;
};

class StepAllocations : public ::testing::TestWithParam<int> {};

TEST_P(StepAllocations, ADecodeTakesMemoryForItsResultsOnly) {
  const int world = GetParam();
  Group group(world);
  for (int i = 0; i < kWarmUp; ++i) group.Step();
  const int64_t before = allocations;
  for (int i = 0; i < kSteps; ++i) group.Step();
  // On every rank the result's segments and the tokens of its one segment. A follower may be a step
  // behind at both ends.
  EXPECT_LE(allocations - before, int64_t{2} * world * (kSteps + 1));
  EXPECT_GE(allocations - before, int64_t{2} * kSteps) << "nothing is counted";
}

INSTANTIATE_TEST_SUITE_P(Worlds, StepAllocations, ::testing::Values(1, 2));

}  // namespace
}  // namespace facet
