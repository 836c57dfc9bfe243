#include "shard_worker/runtime/plan_codec.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

StepPlan SomePlan() {
  StepPlan plan;
  plan.step = 77;
  plan.ends = {SlotId{3}, SlotId{1}};
  SequenceStart start;
  start.slot = SlotId{1};
  start.seed = 0x123456789abcdef0;
  start.sampling.temperature = 0.5f;
  start.sampling.logit_bias = {{4, -1.5f}, {9, 2.0f}};
  start.logprobs = 3;
  start.history = {5, 6, 7};
  start.prompt_length = 2;
  plan.starts = {start};
  Segment segment;
  segment.slot = SlotId{1};
  segment.first_position = 1 << 20;
  segment.tokens = {1, 2, 3};
  segment.proposals = 2;
  segment.blocks = {std::vector<int32_t>{0, 4}, std::vector<int32_t>{-1, 7}};
  segment.sample = true;
  segment.next_prompt_token = 12;
  plan.segments = {segment, Segment{}};
  return plan;
}

std::vector<std::byte> Encoded(const StepPlan& plan, StepForm form = StepForm::kWhole) {
  std::vector<std::byte> bytes(3, std::byte{9});  // of an earlier plan
  EncodePlan(plan, form, &bytes);
  return bytes;
}

TEST(PlanCodec, RoundTripKeepsEveryField) {
  const StepPlan plan = SomePlan();
  const std::vector<std::byte> bytes = Encoded(plan, StepForm::kOverlapping);
  StepPlan decoded;
  StepForm form = StepForm::kWhole;
  ASSERT_TRUE(DecodePlan(bytes, &decoded, &form).ok());
  EXPECT_EQ(form, StepForm::kOverlapping);
  EXPECT_EQ(Encoded(decoded, form), bytes);
  ASSERT_EQ(decoded.starts.size(), 1u);
  EXPECT_EQ(decoded.starts[0].sampling, plan.starts[0].sampling);
  EXPECT_EQ(decoded.starts[0].history, plan.starts[0].history);
  EXPECT_EQ(decoded.segments[0].proposals, 2);
  EXPECT_EQ(decoded.segments[0].blocks, plan.segments[0].blocks);
  EXPECT_EQ(decoded.segments[0].next_prompt_token, plan.segments[0].next_prompt_token);
  EXPECT_EQ(decoded.ends, plan.ends);
}

TEST(PlanCodec, NothingIsLeftOfThePlanThatWasThereBefore) {
  StepPlan other;
  other.step = 3;
  other.segments.emplace_back().tokens = {4};
  StepPlan decoded = SomePlan();
  StepForm form = StepForm::kOverlapping;
  ASSERT_TRUE(DecodePlan(Encoded(other), &decoded, &form).ok());
  EXPECT_EQ(Encoded(decoded, form), Encoded(other));
}

TEST(PlanCodec, TruncationIsAnError) {
  const std::vector<std::byte> bytes = Encoded(SomePlan());
  StepPlan plan;
  StepForm form = StepForm::kWhole;
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(DecodePlan(std::span(bytes).first(size), &plan, &form).ok()) << size;
  }
  std::vector<std::byte> longer = bytes;
  longer.push_back(std::byte{0});
  EXPECT_FALSE(DecodePlan(longer, &plan, &form).ok());
}

TEST(PlanCodec, AFormThatNobodyKnowsIsAnError) {
  StepPlan plan;
  StepForm form = StepForm::kWhole;
  const auto unknown = static_cast<StepForm>(2);
  EXPECT_FALSE(DecodePlan(Encoded(SomePlan(), unknown), &plan, &form).ok());
}

}  // namespace
}  // namespace facet
