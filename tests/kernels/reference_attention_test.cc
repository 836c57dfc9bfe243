// The reference device's attention against double precision.

#include <gtest/gtest.h>

#include <cmath>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/attention_scenario.h"

namespace facet {
namespace {

using Doubles = std::vector<double>;

void Normalise(Doubles* x, const std::vector<float>& weight, double epsilon) {
  double sum = 0;
  for (const double value : *x) sum += value * value;
  const double inverse = 1 / std::sqrt(sum / static_cast<double>(x->size()) + epsilon);
  for (size_t i = 0; i < x->size(); ++i) (*x)[i] *= inverse * weight[i];
}

void Rotate(Doubles* x, const std::vector<float>& frequencies, int64_t position) {
  const size_t pairs = frequencies.size();
  for (size_t i = 0; i < pairs; ++i) {
    const double angle = static_cast<double>(position) * frequencies[i];
    const double a = (*x)[i];
    const double b = (*x)[i + pairs];
    (*x)[i] = a * std::cos(angle) - b * std::sin(angle);
    (*x)[i + pairs] = b * std::cos(angle) + a * std::sin(angle);
  }
}

// The vector of head `head` (q heads, then k, then v) of one row, normed and rotated.
Doubles HeadVector(const AttentionScenario& scenario, const std::vector<float>& qkv,
                   int64_t position, int head) {
  const auto from = qkv.begin() + position * scenario.width() + head * scenario.head_dim;
  Doubles x(from, from + scenario.head_dim);
  if (head >= scenario.heads + scenario.kv_heads) return x;
  if (scenario.norms) Normalise(&x, MakeNormWeights(scenario, head < scenario.heads ? 0 : 1), 1e-5);
  Rotate(&x, MakeFrequencies(scenario), position);
  return x;
}

Doubles AttendExactly(const AttentionScenario& scenario, const std::vector<float>& qkv,
                      int64_t position, int head) {
  const Doubles q = HeadVector(scenario, qkv, position, head);
  const int kv = scenario.kv_of_head[head];
  const int64_t first =
      scenario.window > 0 ? std::max<int64_t>(0, position - scenario.window + 1) : 0;
  Doubles out(scenario.head_dim);
  double total = 0;
  for (int64_t key = first; key <= position; ++key) {
    const Doubles k = HeadVector(scenario, qkv, key, scenario.heads + kv);
    const Doubles v = HeadVector(scenario, qkv, key, scenario.heads + scenario.kv_heads + kv);
    double score = 0;
    for (int d = 0; d < scenario.head_dim; ++d) score += q[d] * k[d];
    score *= 1.3 / std::sqrt(scenario.head_dim);
    if (scenario.soft_cap > 0) score = scenario.soft_cap * std::tanh(score / scenario.soft_cap);
    const double p = std::exp(score);
    total += p;
    for (int d = 0; d < scenario.head_dim; ++d) out[d] += p * v[d];
  }
  for (double& value : out) value /= total;
  return out;
}

void ExpectClose(const AttentionScenario& scenario, double tolerance) {
  const auto device = MakeReferenceDevice();
  const AttentionResult result = RunAttention(*device, scenario, OneStep(scenario));
  const std::vector<std::vector<float>> inputs = MakeQkv(scenario);
  for (size_t s = 0; s < inputs.size(); ++s) {
    for (int64_t position = 0; position < scenario.lengths[s]; position += 11) {
      for (int head = 0; head < scenario.heads; ++head) {
        const Doubles expected = AttendExactly(scenario, inputs[s], position, head);
        for (int d = 0; d < scenario.head_dim; ++d) {
          const int64_t index = (position * scenario.heads + head) * scenario.head_dim + d;
          ASSERT_NEAR(result.out[s][index], expected[d], tolerance) << s << " " << position;
        }
      }
    }
  }
}

TEST(ReferenceAttention, AgreesWithDoublePrecision) {
  AttentionScenario scenario;
  scenario.type = KvType::kF32;
  scenario.lengths = {150, 3, 65};
  ExpectClose(scenario, 3e-6);
}

TEST(ReferenceAttention, KeepsKeysInHalfPrecision) {
  AttentionScenario scenario;
  scenario.lengths = {100};
  ExpectClose(scenario, 4e-3);
}

TEST(ReferenceAttention, WindowsNormsAndSoftCaps) {
  AttentionScenario scenario;
  scenario.type = KvType::kF32;
  scenario.heads = 3;
  scenario.kv_heads = 2;
  scenario.kv_of_head = {0, 1, 1};
  scenario.head_dim = 40;
  scenario.rotary = 24;
  scenario.window = 37;
  scenario.soft_cap = 1.5f;
  scenario.norms = true;
  scenario.block_tokens = 7;
  scenario.lengths = {140, 90};
  ExpectClose(scenario, 3e-6);
}

TEST(ReferenceAttention, ChunksDoNotChangeABit) {
  AttentionScenario scenario;
  scenario.window = 70;
  scenario.lengths = {150, 66, 1};
  const auto expected = RunAttention(*MakeReferenceDevice(), scenario, OneStep(scenario));
  for (const int rows : {1, 16, 63, 64, 65}) {
    EXPECT_EQ(RunAttention(*MakeReferenceDevice(), scenario, Chunks(scenario, rows)), expected)
        << rows;
  }
}

}  // namespace
}  // namespace facet
