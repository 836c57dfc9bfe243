// The tested devices' attention equals the reference device's bit for bit, in every chunking.

#include <gtest/gtest.h>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/attention_scenario.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

void ExpectSame(const AttentionResult& got, const AttentionResult& expected,
                const std::string& what) {
  ASSERT_EQ(got.out.size(), expected.out.size());
  for (size_t i = 0; i < got.out.size(); ++i) {
    ASSERT_EQ(FirstDifference(got.qkv[i], expected.qkv[i]), -1) << what << ", sequence " << i;
    ASSERT_EQ(FirstDifference(got.out[i], expected.out[i]), -1) << what << ", sequence " << i;
  }
}

void ExpectEqual(const AttentionScenario& scenario, const std::vector<int>& chunks,
                 std::initializer_list<int> threads = {1, 3}) {
  const AttentionResult expected =
      RunAttention(*MakeReferenceDevice(), scenario, OneStep(scenario));
  for (const NamedDevice& named : TestedDevices(threads)) {
    ASSERT_NO_FATAL_FAILURE(ExpectSame(RunAttention(*named.device, scenario, OneStep(scenario)),
                                       expected, named.name + ", whole"));
    for (const int rows : chunks) {
      ASSERT_NO_FATAL_FAILURE(
          ExpectSame(RunAttention(*named.device, scenario, Chunks(scenario, rows)), expected,
                     named.name + ", chunks of " + std::to_string(rows)));
    }
  }
}

TEST(DeviceAttention, EqualsTheReferenceInEveryChunking) {
  AttentionScenario scenario;
  scenario.lengths = Shapes<int>({150, 1, 66, 64}, {70, 1, 64});
  ExpectEqual(scenario, Shapes<int>({1, 16, 63, 64, 65}, {16, 65}));
}

TEST(DeviceAttention, EqualsTheReferenceWithWindows) {
  for (const int64_t window : Shapes<int64_t>({1, 5, 64, 100}, {5, 64})) {
    AttentionScenario scenario;
    scenario.window = window;
    scenario.lengths = Shapes<int>({170, 70}, {135});
    scenario.seed = static_cast<uint64_t>(window);
    ExpectEqual(scenario, Shapes<int>({1, 37}, {37}));
  }
}

TEST(DeviceAttention, SkipsBlocksThatTheWindowLeftBehind) {
  AttentionScenario scenario;
  scenario.window = 1;  // so that nothing before the first token is seen
  scenario.lengths = {100, 30};
  scenario.first_positions = {1000, 77};
  ExpectEqual(scenario, Shapes<int>({1, 37}, {37}));
}

// The CPU devices keep the rotations of the first 4,096 positions from step to step.
TEST(DeviceAttention, EqualsTheReferenceWhereRotationsAreKeptAndBeyond) {
  AttentionScenario scenario;
  scenario.window = 1;
  scenario.lengths = {9, 9, 9};
  scenario.first_positions = {4090, 4090, 4092};
  ExpectEqual(scenario, Shapes<int>({1, 2, 5}, {5}));
}

TEST(DeviceAttention, EqualsTheReferenceForAnyMapOfHeads) {
  const std::vector<std::vector<int>> kMaps = {
      {0}, {0, 1, 2}, {0, 0, 0, 1, 1, 1, 2, 2, 2}, {2, 0, 2, 1, 2}, {0, 0, 0, 0, 0, 0, 0, 0, 0}};
  for (const std::vector<int>& map : kMaps) {
    AttentionScenario scenario;
    scenario.heads = static_cast<int>(map.size());
    scenario.kv_of_head = map;
    scenario.kv_heads = 1 + *std::max_element(map.begin(), map.end());
    scenario.lengths = Shapes<int>({80, 40}, {9, 3});
    ExpectEqual(scenario, Shapes<int>({1, 16}, {1}));
  }
}

TEST(DeviceAttention, EqualsTheReferenceForOddHeadSizes) {
  for (const int head_dim : {16, 40, 64, 80, 96, 256}) {
    AttentionScenario scenario;
    scenario.head_dim = head_dim;
    scenario.rotary = head_dim / 4 * 2;
    scenario.lengths = Shapes<int>({70, 9}, {13, 2});
    ExpectEqual(scenario, Shapes<int>({1, 2, 7}, {1, 7}));
  }
}

TEST(DeviceAttention, EqualsTheReferenceWithSoftCapNormsAndFloatKeys) {
  AttentionScenario scenario;
  scenario.soft_cap = 2;
  scenario.norms = true;
  scenario.type = KvType::kF32;
  scenario.block_tokens = 7;
  scenario.lengths = Shapes<int>({130, 50}, {70, 10});
  ExpectEqual(scenario, Shapes<int>({1, 30}, {30}));
  scenario.rotary = 0;
  scenario.norms = false;
  scenario.head_dim = 40;
  ExpectEqual(scenario, {30});
}

TEST(DeviceAttention, ManyHeadsOnOneKey) {
  AttentionScenario scenario;
  scenario.heads = 70;  // more than one tile of queries
  scenario.kv_of_head.assign(70, 0);
  scenario.head_dim = 16;
  scenario.rotary = 16;
  scenario.lengths = Shapes<int>({65}, {5});
  ExpectEqual(scenario, {1});
}

TEST(DeviceAttention, LongContextsAreSharedByThreads) {
  AttentionScenario scenario;
  scenario.head_dim = 16;
  scenario.rotary = 16;
  const int length = TestedDevicesAreSlow() ? 300 : 1500;
  scenario.lengths = {length};
  const AttentionResult expected =
      RunAttention(*MakeReferenceDevice(), scenario, OneStep(scenario));
  const int decoded = TestedDevicesAreSlow() ? 6 : 198;
  std::vector<StepShares> decode = {{{0, length - decoded - 2}}};
  for (int i = 0; i < decoded; ++i) decode.push_back({{0, 1}});
  decode.push_back({{0, 2}});
  for (const NamedDevice& named : TestedDevices({1, 2, 3})) {
    ExpectSame(RunAttention(*named.device, scenario, decode), expected, named.name);
  }
}

}  // namespace
}  // namespace facet
