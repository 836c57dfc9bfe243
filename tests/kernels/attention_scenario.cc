#include "tests/kernels/attention_scenario.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"

namespace facet {
namespace {

int64_t FirstPosition(const AttentionScenario& scenario, size_t sequence) {
  return scenario.first_positions.empty() ? 0 : scenario.first_positions[sequence];
}

int64_t BlocksOf(const AttentionScenario& scenario, size_t sequence) {
  const int64_t end = FirstPosition(scenario, sequence) + scenario.lengths[sequence];
  return (end + scenario.block_tokens - 1) / scenario.block_tokens;
}

// Block tables in shuffled order, so that neighbours in a sequence are strangers in the pool.
std::vector<std::vector<int32_t>> ShuffledBlocks(const AttentionScenario& scenario, int* total) {
  *total = 0;
  for (size_t i = 0; i < scenario.lengths.size(); ++i) *total += BlocksOf(scenario, i);
  std::vector<int32_t> ids(*total);
  std::iota(ids.begin(), ids.end(), 0);
  Random random(scenario.seed + 99);
  std::shuffle(ids.begin(), ids.end(), random);
  std::vector<std::vector<int32_t>> tables;
  auto next = ids.begin();
  for (size_t i = 0; i < scenario.lengths.size(); ++i) {
    tables.emplace_back(next, next + BlocksOf(scenario, i));
    next += BlocksOf(scenario, i);
    // Blocks wholly before the first token were left behind by the window.
    const int64_t left = FirstPosition(scenario, i) / scenario.block_tokens;
    std::fill_n(tables.back().begin(), left, -1);
  }
  return tables;
}

AttentionSpec MakeSpec(Device& device, const AttentionScenario& scenario) {
  AttentionSpec spec;
  spec.pool = scenario.window > 0 ? kWindowPool : kFullPool;
  spec.pool_layer = 1;
  spec.heads = scenario.heads;
  spec.kv_heads = scenario.kv_heads;
  spec.head_dim = scenario.head_dim;
  spec.kv_of_head = scenario.kv_of_head;
  spec.window = scenario.window;
  spec.scale = ScaleOf(scenario);
  spec.soft_cap = scenario.soft_cap;
  spec.norm_epsilon = 1e-5f;
  if (scenario.rotary > 0) spec.rope = device.AddRope({MakeFrequencies(scenario)});
  if (scenario.norms) {
    spec.q_norm = Upload(device, MakeNormWeights(scenario, 0));
    spec.k_norm = Upload(device, MakeNormWeights(scenario, 1));
  }
  return spec;
}

void AllocatePools(Device& device, const AttentionScenario& scenario, int pool, int blocks) {
  std::array<KvPoolSpec, kKvPools> pools;
  pools[pool] = {
      3, blocks, scenario.block_tokens, scenario.kv_heads, scenario.head_dim, scenario.type};
  FACET_CHECK(device.AllocateKv(pools).ok());
}

}  // namespace

std::vector<std::vector<float>> MakeQkv(const AttentionScenario& scenario) {
  Random random(scenario.seed);
  std::vector<std::vector<float>> qkv;
  for (const int length : scenario.lengths) {
    qkv.push_back(MakeFloats(int64_t{length} * scenario.width(), 1, random));
  }
  return qkv;
}

std::vector<float> MakeNormWeights(const AttentionScenario& scenario, int which) {
  Random random(scenario.seed + 7 + which);
  return MakeFloats(scenario.head_dim, which == 0 ? scenario.query_size : 1, random);
}

float ScaleOf(const AttentionScenario& scenario) {
  const float scale = 1.3f / std::sqrt(static_cast<float>(scenario.head_dim));
  return scenario.query_size == 0 ? scale : scale / scenario.query_size;
}

std::vector<float> MakeFrequencies(const AttentionScenario& scenario) {
  std::vector<float> frequencies;
  for (int i = 0; i < scenario.rotary / 2; ++i) {
    frequencies.push_back(
        static_cast<float>(std::pow(10000.0, -2.0 * i / std::max(scenario.rotary, 1))));
  }
  return frequencies;
}

std::vector<StepShares> OneStep(const AttentionScenario& scenario) {
  StepShares shares;
  for (size_t i = 0; i < scenario.lengths.size(); ++i) {
    shares.push_back({static_cast<int>(i), scenario.lengths[i]});
  }
  return {shares};
}

std::vector<StepShares> Chunks(const AttentionScenario& scenario, int rows) {
  std::vector<StepShares> steps;
  for (int done = 0;; done += rows) {
    StepShares shares;
    for (size_t i = 0; i < scenario.lengths.size(); ++i) {
      const int left = scenario.lengths[i] - done;
      if (left > 0) shares.push_back({static_cast<int>(i), std::min(left, rows)});
    }
    if (shares.empty()) return steps;
    steps.push_back(shares);
  }
}

AttentionResult RunAttention(Device& device, const AttentionScenario& scenario,
                             const std::vector<StepShares>& steps) {
  int blocks = 0;
  const std::vector<std::vector<int32_t>> tables = ShuffledBlocks(scenario, &blocks);
  const AttentionSpec spec = MakeSpec(device, scenario);
  AllocatePools(device, scenario, spec.pool, blocks);
  const std::vector<std::vector<float>> inputs = MakeQkv(scenario);
  const int width = scenario.width();
  const int out_width = scenario.heads * scenario.head_dim;
  AttentionResult result;
  result.qkv.resize(inputs.size());
  result.out.resize(inputs.size());
  for (const StepShares& shares : steps) {
    std::vector<SequenceRun> runs;
    std::vector<float> x;
    int rows = 0;
    for (const StepShare& share : shares) {
      const int64_t done = static_cast<int64_t>(result.qkv[share.sequence].size()) / width;
      SequenceRun run{rows, share.rows, FirstPosition(scenario, share.sequence) + done, {}};
      run.blocks[spec.pool] = tables[share.sequence];
      runs.push_back(run);
      const auto from = inputs[share.sequence].begin() + done * width;
      x.insert(x.end(), from, from + int64_t{share.rows} * width);
      rows += share.rows;
    }
    const StepLayout layout{rows, runs};
    const Floats qkv = Upload(device, x);
    const Floats out = *device.AllocateFloats(int64_t{rows} * out_width);
    device.BeginStep(layout);
    device.RopeAndStore(spec, qkv);
    device.Attend(spec, qkv, out);
    const std::vector<float> qkv_after = Download(device, qkv);
    const std::vector<float> out_after = Download(device, out);
    for (size_t i = 0; i < runs.size(); ++i) {
      const int64_t first = runs[i].first_row;
      const int64_t last = first + runs[i].rows;
      auto& all_qkv = result.qkv[shares[i].sequence];
      auto& all_out = result.out[shares[i].sequence];
      all_qkv.insert(all_qkv.end(), qkv_after.begin() + first * width,
                     qkv_after.begin() + last * width);
      all_out.insert(all_out.end(), out_after.begin() + first * out_width,
                     out_after.begin() + last * out_width);
    }
  }
  return result;
}

}  // namespace facet
