#include "tests/runtime/stepped_group.h"

#include <gtest/gtest.h>

#include <chrono>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "shard_worker/runtime/sequence_slots.h"

namespace facet::testing {

namespace {

constexpr int kSequencesMax = 8;
constexpr int kPromptLength = 3;

}  // namespace

std::vector<StepKind> StepKinds() {
  SequenceStart greedy, noisy, top_k, top_p, penalised, scored;
  greedy.sampling = {.temperature = 0};
  top_k.sampling = {.temperature = 0.8f, .top_k = 20, .top_p = 0.9f};
  top_p.sampling = {.temperature = 0.7f, .top_p = 0.9f, .min_p = 0.01f};
  penalised.sampling = {.repetition_penalty = 1.2f,
                        .presence_penalty = 0.3f,
                        .frequency_penalty = 0.2f,
                        .logit_bias = {{7, -1.5f}, {40, 2}}};
  scored.sampling = top_p.sampling;
  scored.logprobs = 5;
  std::vector<StepKind> kinds = {{"Greedy", {greedy}},       {"Noisy", {noisy}},
                                 {"TopK", {top_k}},          {"TopP", {top_p}},
                                 {"Penalised", {penalised}}, {"Scored", {scored}}};
  StepKind& all = kinds.emplace_back(StepKind{"All", {}});
  for (const SequenceStart& start : {greedy, noisy, top_k, top_p, penalised, scored}) {
    all.starts.push_back(start);
  }
  return kinds;
}

SteppedGroup::SteppedGroup(const SteppedGroupOptions& group) {
  std::vector<std::unique_ptr<Communicator>> communicators = MakeLocalGroup(group.world);
  for (int rank = 0; rank < group.world; ++rank) {
    RankOptions options;
    options.model_path = "tests/golden/tiny/gemma3_8h_quantized.gguf";
    options.rank = rank;
    options.world = group.world;
    options.threads = group.threads;
    options.kv_tokens = 256;
    options.step_tokens_max = kSequencesMax * kPromptLength;
    options.sequences_max = kSequencesMax;
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
  plan_.starts = group.kind.starts;
  for (int32_t i = 0; i < std::ssize(plan_.starts); ++i) {
    Segment& segment = plan_.segments.emplace_back();
    segment.slot = SlotId{i};
    segment.tokens = {5 + i, 6 + i, 7 + i};
    segment.blocks = {std::vector<int32_t>{i}, std::vector<int32_t>{i}};
    segment.sample = true;
    SequenceStart& start = plan_.starts[static_cast<size_t>(i)];
    start.slot = segment.slot;
    start.seed = static_cast<uint64_t>(i) + 1;
    if (!Penalises(start.sampling)) continue;
    start.history = segment.tokens;
    start.prompt_length = kPromptLength;
  }
}

SteppedGroup::~SteppedGroup() {
  EXPECT_TRUE(ranks_[0]->StopFollowers().ok());
  for (std::thread& follower : followers_) follower.join();
}

void SteppedGroup::Step() {
  ++plan_.step;
  const absl::StatusOr<StepResult> result = executor_->Run(plan_);
  ASSERT_TRUE(result.ok()) << result.status();
  plan_.starts.clear();
  for (size_t i = 0; i < plan_.segments.size(); ++i) {
    ASSERT_EQ(result->segments[i].sampled.size(), 1u);
    Segment& segment = plan_.segments[i];
    segment.first_position += static_cast<int64_t>(segment.tokens.size());
    segment.tokens.assign(1, kSampledToken);
  }
}

}  // namespace facet::testing
