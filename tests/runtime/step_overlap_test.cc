// Steps that begin before the one before them is read, their tokens taken from the device: the same
// tokens as one step after the other, on devices in host memory and on emulated GPUs, alone and as
// groups of ranks.

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/host/forwarding_device.h"
#include "kernels/reference/reference_device.h"
#include "tests/base/sanitized.h"
#include "tests/runtime/emulated_device.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 300;  // below every tiny model's

EngineRequest Request(int tokens, uint64_t seed, int max_tokens, float temperature = 0) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(seed, i) % kVocabulary));
  }
  EngineRequest request = GreedyRequest(std::move(prompt), max_tokens);
  request.logits_digest = false;
  request.seed = seed;
  request.sampling.temperature = temperature;
  return request;
}

GroupOptions Options(const std::string& device, int world = 1) {
  GroupOptions options;
  options.world = world;
  options.rank.model_path = "tests/golden/tiny/gemma3_8h_quantized.gguf";
  options.rank.kv_tokens = 1024;
  options.rank.step_tokens_max = 64;
  options.rank.sequences_max = 8;
  if (device == "cuda") return OnCuda(options);
  options.rank.device = device;
  return options;
}

struct Report {
  std::vector<Output> outputs;
  int overlapped = 0;
  EngineStats stats;
};

Report RunAll(GroupOptions options, bool overlap, const std::vector<EngineRequest>& requests,
              const std::map<size_t, int>& cancel_at = {}) {
  options.rank.overlap = overlap;
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  Report report;
  report.outputs = (*group)->Run(requests, cancel_at);
  report.overlapped = (*group)->overlapped();
  report.stats = (*group)->stats();
  return report;
}

void ExpectSame(const std::vector<Output>& got, const std::vector<Output>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens) << i;  // with their log-probabilities
    EXPECT_EQ(got[i].finish, want[i].finish) << i;
  }
}

// Runs the same both ways. Returns the report with overlap.
Report ExpectNoDifference(const GroupOptions& options, const std::vector<EngineRequest>& requests,
                          const std::map<size_t, int>& cancel_at = {}) {
  const Report apart = RunAll(options, false, requests, cancel_at);
  const Report overlapped = RunAll(options, true, requests, cancel_at);
  EXPECT_EQ(apart.overlapped, 0);
  ExpectSame(overlapped.outputs, apart.outputs);
  return overlapped;
}

using Group = std::tuple<const char*, int>;  // its device, and ranks

std::string NameOf(const ::testing::TestParamInfo<Group>& info) {
  return std::string(std::get<0>(info.param)) + "_" + std::to_string(std::get<1>(info.param));
}

class StepOverlap : public ::testing::TestWithParam<Group> {
 protected:
  bool slow() const { return std::string(std::get<0>(GetParam())) == "cuda"; }
  GroupOptions GroupOf() const { return Options(std::get<0>(GetParam()), std::get<1>(GetParam())); }
};

INSTANTIATE_TEST_SUITE_P(Groups, StepOverlap,
                         ::testing::Combine(::testing::Values("reference", "avx2", "cuda"),
                                            ::testing::ValuesIn(Cases<int>({1, 2}, {2}))),
                         NameOf);

class StepOverlapAtEveryDegree : public StepOverlap {};

INSTANTIATE_TEST_SUITE_P(Groups, StepOverlapAtEveryDegree,
                         ::testing::Combine(::testing::Values("reference", "avx2", "cuda"),
                                            ::testing::ValuesIn(Cases<int>({1, 2, 3}, {2}))),
                         NameOf);

// Lengths that end at different steps, a biased one, one that a stop token ends (its next row is on
// its way by then), one cancelled, and one that enters when another has left its slot.
TEST_P(StepOverlapAtEveryDegree, MixedSequencesHaveTheSameTokens) {
  const int more = slow() ? 0 : 12;
  const int prompt = slow() ? 7 : 33;
  std::vector<EngineRequest> requests = {Request(8, 1, 6 + more), Request(5, 2, 8 + more, 1.2f),
                                         Request(3, 3, 4 + more, 0.7f),
                                         Request(prompt, 4, 9 + more)};
  requests[2].sampling.logit_bias = {{7, 2.5f}, {11, -100.0f}};
  GroupOptions options = GroupOf();
  options.rank.sequences_max = 3;  // the fourth waits
  requests[1].stop_token_ids = {RunAll(Options("avx2"), false, requests).outputs[1].ids()[3]};

  const Report report = ExpectNoDifference(options, requests, {{0, 3}});
  EXPECT_GE(report.overlapped, slow() ? 5 : 15);
  EXPECT_EQ(report.outputs[1].finish, EngineFinish::kStopToken);
  EXPECT_LE(report.outputs[1].ids().size(), 4u);
  EXPECT_EQ(report.outputs[0].finish, EngineFinish::kCancelled);
  EXPECT_EQ(report.outputs[0].ids().size(), 3u);
  EXPECT_EQ(report.outputs[3].ids().size(), static_cast<size_t>(9 + more));
}

// Rows that need the host between two steps: while they are there nothing overlaps, and then again.
TEST_P(StepOverlap, StopsForRowsThatNeedTheHost) {
  const int more = slow() ? 0 : 10;
  std::vector<EngineRequest> requests = {Request(12, 1, 9 + more), Request(7, 2, 3, 1.1f)};
  for (const int kind : {0, 1, 2, 3}) {
    SCOPED_TRACE(kind);
    if (slow() && kind != 1) continue;
    EngineRequest other = requests[1];
    if (kind == 0) other.sampling.top_p = 0.8f;
    if (kind == 1) other.sampling.repetition_penalty = 1.3f;
    if (kind == 2) other.logprobs = 2;
    if (kind == 3) other.logits_digest = true;
    const Report report = ExpectNoDifference(GroupOf(), {requests[0], other});
    EXPECT_GE(report.overlapped, 3);
    EXPECT_LE(report.overlapped, 9 + more - 3);  // not while the other ran
  }
}

// Alone: every step but the first begins beside another, and the wasted rows of a stop are dropped.
TEST_P(StepOverlapAtEveryDegree, EveryDecodeOverlaps) {
  const Report report = ExpectNoDifference(GroupOf(), {Request(3, 5, 7)});
  EXPECT_EQ(report.overlapped, 6);
}

// What was under way when the epoch broke off is forgotten, on every rank.
TEST_P(StepOverlap, AnEpochThatBreaksOffLeavesNothing) {
  GroupOptions options = GroupOf();
  options.rank.overlap = true;
  const std::vector<EngineRequest> requests = {Request(9, 1, 5), Request(5, 2, 5, 1.2f)};
  auto group = InProcessGroup::Start(options);
  ASSERT_TRUE(group.ok()) << group.status();
  const std::vector<Output> want = (*group)->Run(requests);
  (*group)->RunSteps({Request(7, 8, 20), Request(4, 9, 20, 0.9f)}, 4);
  EXPECT_EQ((*group)->under_way(), 1);
  (*group)->BreakOff();
  ExpectSame((*group)->Run(requests), want);
}

class StepOverlapOnHosts : public StepOverlap {};

INSTANTIATE_TEST_SUITE_P(Groups, StepOverlapOnHosts,
                         ::testing::Combine(::testing::Values("reference", "avx2"),
                                            ::testing::Values(1, 2)),
                         NameOf);

// A pool so small that sequences give way to each other, chunks, and prompts that share a prefix.
TEST_P(StepOverlapOnHosts, WithPreemptionChunksAndSharedPrefixes) {
  GroupOptions options = GroupOf();
  options.rank.kv_tokens = 256;
  options.rank.step_tokens_max = 40;
  options.rank.prefill_chunk_max = 24;
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 8; ++i) {
    EngineRequest request =
        Request(40 + 7 * i, static_cast<uint64_t>(1 + i), 30 + 3 * i, i % 2 == 0 ? 0 : 1.3f);
    if (i >= 5) std::copy_n(requests[0].tokens.begin(), 34, request.tokens.begin());
    requests.push_back(std::move(request));
  }
  const Report report = ExpectNoDifference(options, requests);
  EXPECT_GT(report.stats.preemptions, 0);
  EXPECT_GT(report.overlapped, 20);
}

// More rows than are searched at a time.
TEST_P(StepOverlapOnHosts, ManyRows) {
  GroupOptions options = GroupOf();
  options.rank.sequences_max = 40;
  options.rank.kv_tokens = 2048;
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 40; ++i) {
    requests.push_back(
        Request(1 + i % 5, static_cast<uint64_t>(1 + i), 8 + i % 3, i % 3 == 0 ? 1.1f : 0));
  }
  EXPECT_GT(ExpectNoDifference(options, requests).overlapped, 3);
}

// Two sequences of a few words, which are guessed and checked in steps of their own, beside one of
// another kind: tokens of either kind of step are taken by the other.
TEST_P(StepOverlapOnHosts, WithSpeculation) {
  GroupOptions options = GroupOf();
  options.speculation.proposals_max = 4;
  std::vector<EngineRequest> requests = {Request(20, 1, 40), Request(29, 2, 40, 1.3f),
                                         Request(9, 3, 30, 1.1f)};
  for (size_t i = 0; i < 2; ++i) {
    for (TokenId word = 0; word < 3; ++word) {
      requests[i].sampling.logit_bias.emplace_back(7 * word + 2, 60.0f);
    }
  }
  const Report report = ExpectNoDifference(options, requests);
  EXPECT_GT(report.stats.accepted_tokens, 5);
  EXPECT_GT(report.overlapped, 5);
}

// --- Failures.

// From its third answer on the device is broken.
class BreakingDevice final : public ForwardingDevice {
 public:
  using ForwardingDevice::ForwardingDevice;
  absl::Status ReadBest(std::span<BestToken> tokens) override {
    if (++reads_ < 3) return ForwardingDevice::ReadBest(tokens);
    return Internal("an illegal memory access");
  }

 private:
  int reads_ = 0;
};

StepPlan Decode(uint64_t step, int64_t position) {
  StepPlan plan;
  plan.step = step;
  Segment& segment = plan.segments.emplace_back();
  segment.slot = SlotId{0};
  segment.first_position = position;
  segment.tokens = {kSampledToken};
  segment.blocks = {std::vector<int32_t>{0}, std::vector<int32_t>{0}};
  segment.sample = true;
  return plan;
}

TEST(StepOverlapFailure, IsToldWhereTheStepIsRead) {
  RankOptions options = Options("reference").rank;
  options.overlap = true;
  options.make_device = [] { return std::make_unique<BreakingDevice>(MakeReferenceDevice()); };
  const auto rank = Rank::Load(options);
  ASSERT_TRUE(rank.ok()) << rank.status();
  (*rank)->Attach(std::move(MakeLocalGroup(1).front()));
  const std::unique_ptr<Executor> executor = (*rank)->MakeExecutor();
  StepPlan first = Decode(11, 0);
  first.starts.push_back({.slot = SlotId{0}, .sampling = {.temperature = 0}});
  first.segments[0].tokens = {5};
  for (const StepPlan& plan : {first, Decode(12, 1)}) {
    ASSERT_TRUE(executor->MayBegin(plan));
    ASSERT_TRUE(executor->Begin(plan).ok());
  }
  EXPECT_FALSE(executor->MayBegin(Decode(13, 2))) << "two are under way";
  EXPECT_TRUE(executor->End().ok());
  ASSERT_TRUE(executor->Begin(Decode(13, 2)).ok());
  EXPECT_TRUE(executor->End().ok());
  const absl::Status broken = executor->End().status();
  EXPECT_NE(broken.message().find("step 13"), std::string::npos) << broken;
  EXPECT_NE(broken.message().find("an illegal memory access"), std::string::npos) << broken;
}

// By default what computes in the caller's thread takes one step after the other.
TEST(StepOverlapDefault, IsTheDevices) {
  for (const auto& [device, overlaps] : {std::pair("reference", false), std::pair("cuda", true)}) {
    for (const int world : {1, 2}) {
      SCOPED_TRACE(std::string(device) + " of " + std::to_string(world));
      auto group = InProcessGroup::Start(Options(device, world));
      ASSERT_TRUE(group.ok()) << group.status();
      (*group)->Run({Request(3, 5, 4)});
      EXPECT_EQ((*group)->overlapped() > 0, overlaps);
      EXPECT_EQ((*group)->leader().engine_options().steps_max, overlaps ? 2 : 1);
    }
  }
}

// Whose data goes through the hosts, one rank waits for the other in every step.
TEST(StepOverlapDefault, IsOffWhereRanksExchangeThroughTheirHosts) {
  RankOptions options = Options("cuda", 2).rank;
  options.world = 2;
  const auto rank = Rank::Load(options);
  ASSERT_TRUE(rank.ok()) << rank.status();
  (*rank)->Attach(std::move(MakeLocalGroup(2).front()));
  EXPECT_EQ((*rank)->engine_options().steps_max, 1);
  EXPECT_FALSE((*rank)->MakeExecutor()->MayBegin(Decode(1, 0)));
}

}  // namespace
}  // namespace facet::testing
