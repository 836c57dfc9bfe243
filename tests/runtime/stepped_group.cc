#include "tests/runtime/stepped_group.h"

#include <gtest/gtest.h>

#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/local.h"

namespace facet::testing {

SteppedGroup::SteppedGroup(const SteppedGroupOptions& group) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalGroup(group.world);
  for (int rank = 0; rank < group.world; ++rank) {
    RankOptions options;
    options.model_path = "tests/golden/tiny/gemma3_8h_quantized.gguf";
    options.rank = rank;
    options.world = group.world;
    options.threads = group.threads;
    options.kv_tokens = 256;
    options.step_tokens_max = 16;
    options.sequences_max = 2;
    options.step_timeout = std::chrono::minutes(5);
    absl::StatusOr<std::unique_ptr<Rank>> loaded = Rank::Load(options);
    FACET_CHECK(loaded.ok(), "{}", MessageOf(loaded.status()));
    ranks_.push_back(*std::move(loaded));
    ranks_.back()->Attach(std::move(communicators[static_cast<size_t>(rank)]));
  }
  for (int rank = 1; rank < group.world; ++rank) {
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

SteppedGroup::~SteppedGroup() {
  EXPECT_TRUE(ranks_[0]->StopFollowers().ok());
  for (std::thread& follower : followers_) follower.join();
}

void SteppedGroup::Step() {
  ++plan_.step;
  const absl::StatusOr<StepResult> result = executor_->Run(plan_);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->segments[0].sampled.size(), 1u);
  plan_.starts.clear();
  Segment& segment = plan_.segments[0];
  segment.first_position += static_cast<int64_t>(segment.tokens.size());
  segment.tokens.assign(1, kSampledToken);
}

}  // namespace facet::testing
