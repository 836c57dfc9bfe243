#ifndef FACET_TESTS_KERNELS_ATTENTION_SCENARIO_H_
#define FACET_TESTS_KERNELS_ATTENTION_SCENARIO_H_

// One attention layer over several sequences, computed in any chunking on any device.

#include <memory>
#include <vector>

#include "kernels/device.h"
#include "tests/kernels/test_data.h"

namespace facet {

struct AttentionScenario {
  int heads = 4;
  int kv_heads = 1;
  std::vector<int> kv_of_head = {0, 0, 0, 0};
  int head_dim = 64;
  int rotary = 64;  // 0: no rotation
  int64_t window = 0;
  float soft_cap = 0;
  bool norms = false;
  float query_size = 1;  // with norms: queries are so much larger, and `scale` as much smaller
  int block_tokens = 16;
  KvType type = KvType::kF16;
  std::vector<int> lengths = {100};           // of the sequences
  std::vector<int64_t> first_positions = {};  // empty: 0. Nothing before is seen (needs a window)
  uint64_t seed = 1;

  int width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// What one step computes: `rows` further tokens of each sequence named.
struct StepShare {
  int sequence = 0;
  int rows = 0;
};
using StepShares = std::vector<StepShare>;

struct AttentionResult {
  // Per sequence: [length, width] after norms and rotation, and [length, heads x head_dim].
  std::vector<std::vector<float>> qkv;
  std::vector<std::vector<float>> out;
  friend bool operator==(const AttentionResult&, const AttentionResult&) = default;
};

// The inputs, per sequence [length, width]; a function of the scenario alone.
std::vector<std::vector<float>> MakeQkv(const AttentionScenario& scenario);
// RMS weights of q and k, [head_dim] each.
std::vector<float> MakeNormWeights(const AttentionScenario& scenario, int which);
// AttentionSpec::scale.
float ScaleOf(const AttentionScenario& scenario);
std::vector<float> MakeFrequencies(const AttentionScenario& scenario);

// Every sequence whole, one after the other in one step.
std::vector<StepShares> OneStep(const AttentionScenario& scenario);
// All sequences side by side, at most `rows` tokens of each per step.
std::vector<StepShares> Chunks(const AttentionScenario& scenario, int rows);

AttentionResult RunAttention(Device& device, const AttentionScenario& scenario,
                             const std::vector<StepShares>& steps);

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_ATTENTION_SCENARIO_H_
