// Profiling a step: a decorated device alone, and the ranks of a tiny model.

#include "shard_worker/runtime/profiled_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/test_data.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr char kModel[] = "tests/golden/tiny/gemma3_8h_quantized.gguf";
constexpr int kLayers = 6;

int clock_looks = 0;
// A clock on which every operation takes a second.
double CountingClock() { return ++clock_looks; }

// Two products of one step.
class ProfiledDeviceTest : public ::testing::Test {
 protected:
  ProfiledDeviceTest() : device_(MakeReferenceDevice(), CountingClock) {
    clock_looks = 0;
    matrix_ = *device_.LoadMatrix(file_.source(), nullptr);
    x_ = Upload(device_, MakeFloats(2 * 64, 1, random_));
    out_ = *device_.AllocateFloats(2 * 8);
  }

  void Step() {
    const std::vector<SequenceRun> runs = {{.first_row = 0, .rows = 2}};
    const StepLayout layout{2, runs};
    device_.BeginStep(layout);
    const Matrix* part = matrix_.get();
    for (int i = 0; i < 2; ++i) device_.Product(std::span(&part, 1), x_, 2, out_);
  }

  Random random_{1};
  const TestMatrix file_ = MakeMatrix(TensorType::kQ8_0, 8, 64, 0.1f, random_);
  ProfiledDevice device_;
  std::unique_ptr<Matrix> matrix_;
  Floats x_, out_;
};

TEST_F(ProfiledDeviceTest, OffItLooksAtNoClockAndCountsNothing) {
  Step();
  EXPECT_EQ(clock_looks, 0);
  const StepProfile profile = device_.Take();
  EXPECT_EQ(profile.rows, 0);
  for (const OperationTotals& operation : profile.operations) EXPECT_EQ(operation.calls, 0);
}

TEST_F(ProfiledDeviceTest, OnItKnowsWhatAProductReadsAndComputes) {
  Weights weights;
  weights.embedding = std::move(matrix_);
  device_.Label(weights);
  matrix_ = std::move(weights.embedding);
  device_.Enable(true);
  Step();
  const StepProfile profile = device_.Take();
  const OperationTotals& head = profile[StepOperation::kHead];
  EXPECT_EQ(profile.rows, 2);
  EXPECT_EQ(head.calls, 2);
  EXPECT_EQ(head.seconds, 2);
  EXPECT_EQ(head.bytes, 2.0 * static_cast<double>(matrix_->packed_bytes()));
  EXPECT_EQ(head.operations, 2 * 2 * 2.0 * 64 * 8);
  EXPECT_EQ(device_.Take()[StepOperation::kHead].calls, 0) << "looked at twice";
}

TEST_F(ProfiledDeviceTest, TheSwitchWaitsForTheNextStep) {
  Step();
  device_.Enable(true);
  const Matrix* part = matrix_.get();
  device_.Product(std::span(&part, 1), x_, 2, out_);  // of the step that had begun
  EXPECT_EQ(clock_looks, 0);
  Step();
  device_.Enable(false);
  EXPECT_TRUE(device_.on());
  EXPECT_GT(clock_looks, 0);
}

std::unique_ptr<InProcessGroup> Start(int world) {
  GroupOptions options;
  options.rank.model_path = kModel;
  options.rank.kv_tokens = 1024;
  options.rank.step_tokens_max = 64;
  options.rank.screened_head = false;
  options.world = world;
  options.steps_max = 1;
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

// A prompt of one token, so that every step has one row whose token is chosen.
EngineRequest SixteenSteps() {
  EngineRequest request = GreedyRequest({7}, 16);
  request.logits_digest = false;
  return request;
}

TEST(StepProfile, NothingIsCountedWithoutBeingAsked) {
  const auto group = Start(2);
  group->Run({SixteenSteps()});
  const StepTimes times = group->leader().TakeTimes();
  EXPECT_EQ(times.steps, 16);
  EXPECT_EQ(times.profile.steps, 0);
  for (const OperationTotals& operation : times.profile.operations) {
    EXPECT_EQ(operation.calls, 0);
    EXPECT_EQ(operation.seconds, 0);
  }
}

TEST(StepProfile, SharesOfAStepAddUp) {
  for (const int world : {1, 2}) {
    const auto group = Start(world);
    group->leader().Profile(true);
    group->Run({SixteenSteps()});
    const StepProfile profile = group->leader().TakeTimes().profile;
    EXPECT_EQ(profile.steps, 16) << world;
    EXPECT_EQ(profile.rows, 16) << world;
    double seconds = 0;
    for (const OperationTotals& operation : profile.operations) {
      EXPECT_GE(operation.seconds, 0);
      seconds += operation.seconds;
    }
    EXPECT_GT(seconds, 0);
    EXPECT_NEAR(seconds / profile.seconds, 1, 1e-6) << world;
    for (const StepOperation operation :
         {StepOperation::kQkv, StepOperation::kAttention, StepOperation::kAttentionOutput,
          StepOperation::kGated, StepOperation::kDown}) {
      EXPECT_EQ(profile[operation].calls, 16 * kLayers) << NameOf(operation);
      EXPECT_GT(profile[operation].bytes, 0) << NameOf(operation);
    }
    EXPECT_EQ(profile[StepOperation::kWait].calls, 16);
    EXPECT_EQ(profile[StepOperation::kWait].seconds > 0, world > 1);
  }
}

// A step of one row reads every packed matrix once, so the operations' bytes are the rank's.
TEST(StepProfile, AStepReadsTheWeightsOnce) {
  const auto group = Start(2);
  group->leader().Profile(true);
  group->Run({SixteenSteps()});
  const StepProfile profile = group->leader().TakeTimes().profile;
  double bytes = 0;
  for (const StepOperation operation :
       {StepOperation::kQkv, StepOperation::kAttentionOutput, StepOperation::kGated,
        StepOperation::kDown, StepOperation::kHead}) {
    bytes += profile[operation].bytes / 16;
  }
  const auto packed = static_cast<double>(group->leader().memory().weight_bytes);
  EXPECT_LE(bytes, packed);
  EXPECT_GT(bytes, 0.95 * packed) << "the rest is norms";
}

TEST(StepProfile, ProfilingChangesNoBit) {
  const auto plain = Start(2);
  const auto profiled = Start(2);
  profiled->leader().Profile(true);
  const EngineRequest request = GreedyRequest({1, 2, 3}, 8);
  EXPECT_EQ(plain->Run({request}).front().logits_sha256,
            profiled->Run({request}).front().logits_sha256);
}

TEST(StepProfile, SumsAdd) {
  StepProfile one;
  one.steps = 1;
  one.rows = 2;
  one.seconds = 3;
  one[StepOperation::kDown] = {4, 5, 6, 7};
  StepProfile sum = one;
  sum.Add(one);
  EXPECT_EQ(sum.steps, 2);
  EXPECT_EQ(sum.rows, 4);
  EXPECT_EQ(sum.seconds, 6);
  EXPECT_EQ(sum[StepOperation::kDown].calls, 8);
  EXPECT_EQ(sum[StepOperation::kDown].seconds, 10);
  EXPECT_EQ(sum[StepOperation::kDown].bytes, 12);
  EXPECT_EQ(sum[StepOperation::kDown].operations, 14);
}

TEST(StepProfile, OperationsHaveDifferentNames) {
  std::vector<std::string_view> names;
  for (int i = 0; i < kStepOperations; ++i) names.push_back(NameOf(static_cast<StepOperation>(i)));
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
  EXPECT_EQ(std::count(names.begin(), names.end(), ""), 0);
}

}  // namespace
}  // namespace facet::testing
