// The tested devices' attention equals the reference device's bit for bit, in every chunking; on
// tensor cores it equals itself in every chunking, and the reference within the tolerance that
// kernels/README.md derives.

#include <gtest/gtest.h>

#include <cmath>

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

// Whether the tested devices compute the scenario on tensor cores.
bool OnTensorCores(const AttentionScenario& scenario) {
  return TestedDevicesMmaError() > 0 && scenario.type == KvType::kF16 && scenario.head_dim % 8 == 0;
}

// The largest norms of the scenario's queries and keys, and its largest value.
struct Magnitudes {
  double query = 0;
  double key = 0;
  double value = 0;
};
Magnitudes MagnitudesOf(const AttentionScenario& scenario, const AttentionResult& result) {
  Magnitudes most;
  const int vectors = scenario.heads + 2 * scenario.kv_heads;
  for (const std::vector<float>& rows : result.qkv) {
    for (size_t at = 0; at < rows.size(); at += scenario.head_dim) {
      double squares = 0;
      double largest = 0;
      for (int d = 0; d < scenario.head_dim; ++d) {
        squares += double{rows[at + d]} * rows[at + d];
        largest = std::max<double>(largest, std::abs(rows[at + d]));
      }
      const int vector = static_cast<int>(at / scenario.head_dim) % vectors;
      if (vector < scenario.heads) {
        most.query = std::max(most.query, std::sqrt(squares));
      } else if (vector < scenario.heads + scenario.kv_heads) {
        most.key = std::max(most.key, std::sqrt(squares));
      } else {
        most.value = std::max(most.value, largest);
      }
    }
  }
  return most;
}

// kernels/README.md, "Attention on tensor cores": |out - reference|.
double Tolerance(const AttentionScenario& scenario, const AttentionResult& result) {
  const Magnitudes most = MagnitudesOf(scenario, result);
  const double u = TestedDevicesMmaError() + 0x1p-24;
  const double steps = scenario.head_dim / 16.0 + 4;
  const double scores = ScaleOf(scenario) * most.query * most.key * (0x1p-22 + steps * u) +
                        scenario.soft_cap * 0x1p-20;
  return most.value * (2 * scores + 16 * u + 0x1p-18);
}

void ExpectClose(const AttentionResult& got, const AttentionResult& expected, double tolerance,
                 const std::string& what) {
  ASSERT_EQ(got.out.size(), expected.out.size());
  for (size_t i = 0; i < got.out.size(); ++i) {
    ASSERT_EQ(FirstDifference(got.qkv[i], expected.qkv[i]), -1) << what << ", sequence " << i;
    ASSERT_EQ(got.out[i].size(), expected.out[i].size());
    for (size_t k = 0; k < got.out[i].size(); ++k) {
      ASSERT_NEAR(got.out[i][k], expected.out[i][k], tolerance)
          << what << ", sequence " << i << ", element " << k;
    }
  }
}

// The reference's result, or the device's own that is close to it: what it must give in every
// other chunking too.
AttentionResult ExpectedOf(const NamedDevice& named, const AttentionScenario& scenario,
                           const AttentionResult& reference) {
  if (!OnTensorCores(scenario)) return reference;
  AttentionResult own = RunAttention(*named.device, scenario, OneStep(scenario));
  ExpectClose(own, reference, Tolerance(scenario, reference), named.name);
  return own;
}

void ExpectEqual(const AttentionScenario& scenario, const std::vector<int>& chunks,
                 std::initializer_list<int> threads = {1, 3}) {
  const AttentionResult reference =
      RunAttention(*MakeReferenceDevice(), scenario, OneStep(scenario));
  for (const NamedDevice& named : TestedDevices(threads)) {
    const AttentionResult expected = ExpectedOf(named, scenario, reference);
    if (testing::Test::HasFailure()) return;
    if (!OnTensorCores(scenario)) {
      ASSERT_NO_FATAL_FAILURE(ExpectSame(RunAttention(*named.device, scenario, OneStep(scenario)),
                                         expected, named.name + ", whole"));
    }
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

// Whole it has queries enough for the CPU device's large tiles, in chunks it has not.
TEST(DeviceAttention, ManyRowsAndFewOfThem) {
  AttentionScenario scenario;
  scenario.head_dim = 16;
  scenario.rotary = 16;
  scenario.lengths = {130};
  ExpectEqual(scenario, {33}, {1});
}

TEST(DeviceAttention, LongContextsAreSharedByThreads) {
  AttentionScenario scenario;
  scenario.head_dim = 16;
  scenario.rotary = 16;
  const int length = TestedDevicesAreSlow() ? 300 : 1500;
  scenario.lengths = {length};
  const AttentionResult reference =
      RunAttention(*MakeReferenceDevice(), scenario, OneStep(scenario));
  const int decoded = TestedDevicesAreSlow() ? 6 : 198;
  std::vector<StepShares> decode = {{{0, length - decoded - 2}}};
  for (int i = 0; i < decoded; ++i) decode.push_back({{0, 1}});
  decode.push_back({{0, 2}});
  for (const NamedDevice& named : TestedDevices({1, 2, 3})) {
    const AttentionResult expected = ExpectedOf(named, scenario, reference);
    ExpectSame(RunAttention(*named.device, scenario, decode), expected, named.name);
  }
}

// The promise behind every other: batches come and go around a row, its bits stay.
TEST(DeviceAttention, ARowDoesNotDependOnItsBatch) {
  for (const KvType type : {KvType::kF16, KvType::kF32}) {
    AttentionScenario alone;
    alone.type = type;
    alone.heads = 2;
    alone.kv_of_head = {0, 0};
    alone.lengths = {70};
    AttentionScenario among = alone;
    among.lengths.assign(64, 1);
    among.lengths[0] = 70;
    among.lengths[1] = 66;
    for (const NamedDevice& named : TestedDevices({1, 3})) {
      const auto last = [&](const AttentionScenario& scenario, std::vector<StepShares> steps) {
        const AttentionResult all = RunAttention(*named.device, scenario, steps);
        return std::vector<float>(all.out[0].end() - 2 * 64, all.out[0].end());
      };
      const std::vector<float> expected = last(alone, {{{0, 69}}, {{0, 1}}});
      for (const int rows : {2, 7, 16, 64}) {
        SCOPED_TRACE(named.name + ", " + std::to_string(rows) + " rows");
        // As the last of a chunk of its own sequence.
        EXPECT_EQ(FirstDifference(last(alone, {{{0, 70 - rows}}, {{0, rows}}}), expected), -1);
        // After a chunk of another sequence, and among others that decode.
        EXPECT_EQ(FirstDifference(last(among, {{{0, 69}}, {{1, rows - 1}, {0, 1}}}), expected), -1);
        StepShares decoding = {{0, 1}};
        for (int i = 1; i < rows; ++i) decoding.push_back({i, 1});
        EXPECT_EQ(FirstDifference(last(among, {{{0, 69}}, decoding}), expected), -1);
      }
    }
  }
}

// What the form for keys that tensor cores do not take is held to, on devices that have two forms.
TEST(DeviceAttention, FloatKeysEqualTheReference) {
  AttentionScenario scenario;
  scenario.type = KvType::kF32;
  scenario.window = 5;
  scenario.lengths = Shapes<int>({135, 3}, {70, 3});
  ExpectEqual(scenario, Shapes<int>({1, 37}, {37}));
  scenario.window = 0;
  for (const int head_dim : {40, 256}) {
    scenario.head_dim = head_dim;
    scenario.rotary = head_dim / 4 * 2;
    scenario.lengths = Shapes<int>({70, 9}, {13, 2});
    ExpectEqual(scenario, {7});
  }
}

// Heads of no whole number of 16 bytes: tensor cores do not take them either.
TEST(DeviceAttention, EqualsTheReferenceForHeadsOfAnyLength) {
  AttentionScenario scenario;
  scenario.head_dim = 20;
  scenario.rotary = 20;
  scenario.lengths = {70};
  ExpectEqual(scenario, {16});
}

// A query whose elements overflow halves, and one that is nothing.
TEST(DeviceAttention, LargeAndZeroQueriesStayWithinTheTolerance) {
  AttentionScenario scenario;
  scenario.norms = true;
  scenario.lengths = {20};
  for (const float size : {1e6f, 1e-6f, 0.0f}) {
    scenario.query_size = size;
    ExpectEqual(scenario, {7});
  }
}

}  // namespace
}  // namespace facet
