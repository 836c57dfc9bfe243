#include "shard_worker/model/shard_plan.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/status.h"
#include "kernels/leaf_unit.h"
#include "shard_worker/model/tensor_roles.h"

namespace facet {
namespace {

// Elements that a cut along a row must not separate: a block of the file, or what products take
// together; 1 for F32 and F16.
absl::StatusOr<int64_t> BlockOf(const GgufModel& model, const ModelSpec& spec, TensorRole role,
                                int layer) {
  FACET_ASSIGN_OR_RETURN(const GgufTensor* tensor, FindRole(model, spec, role, layer));
  return std::max(int64_t{FormatOf(tensor->type).elements}, LeafUnit(tensor->type));
}

absl::StatusOr<LayerPlan> PlanLayer(const GgufModel& model, const ModelSpec& spec, int layer) {
  const LayerSpec& layer_spec = spec.layers[layer];
  FACET_ASSIGN_OR_RETURN(const int64_t output_block,
                         BlockOf(model, spec, TensorRole::kAttentionOutput, layer));
  FACET_ASSIGN_OR_RETURN(const int64_t gate_block,
                         BlockOf(model, spec, TensorRole::kFfnGate, layer));
  FACET_ASSIGN_OR_RETURN(const int64_t up_block, BlockOf(model, spec, TensorRole::kFfnUp, layer));
  FACET_ASSIGN_OR_RETURN(const int64_t down_block,
                         BlockOf(model, spec, TensorRole::kFfnDown, layer));
  const int64_t heads_per_unit =
      std::lcm<int64_t>(layer_spec.head_dim, output_block) / layer_spec.head_dim;
  LayerPlan plan;
  plan.heads = Cut(layer_spec.heads, heads_per_unit, kLeavesMax);
  plan.ffn = Cut(layer_spec.ffn, std::max({gate_block, up_block, down_block}), kLeavesMax);
  return plan;
}

LeafCut MakeLeafCut(const Cut& cut, int begin, int end, int64_t columns_per_element) {
  LeafCut leaves;
  leaves.leaves_total = cut.pieces();
  leaves.first_leaf = begin;
  leaves.starts = cut.RelativeStarts(begin, end);
  for (int64_t& start : leaves.starts) start *= columns_per_element;
  return leaves;
}

}  // namespace

Cut::Cut(int64_t elements, int64_t unit, int pieces_max) {
  const int64_t units = (elements + unit - 1) / unit;
  const int64_t pieces = std::min<int64_t>(pieces_max, units);
  for (int64_t piece = 1; piece <= pieces; ++piece) {
    starts_.push_back(std::min(elements, piece * units / pieces * unit));
  }
}

std::vector<int> Cut::rank_begins(int world) const {
  std::vector<int> begins;
  for (int rank = 0; rank <= world; ++rank) begins.push_back(rank_begin(rank, world));
  return begins;
}

std::vector<int64_t> Cut::RelativeStarts(int begin, int end) const {
  std::vector<int64_t> starts;
  for (int piece = begin; piece <= end; ++piece) starts.push_back(starts_[piece] - starts_[begin]);
  return starts;
}

absl::StatusOr<ShardPlan> ShardPlan::Make(const GgufModel& model, const ModelSpec& spec,
                                          int world) {
  ShardPlan plan;
  plan.world_ = world;
  plan.vocabulary_ = Cut(spec.vocabulary, kVocabularyUnit, kVocabularySlicesMax);
  int degree_max = plan.vocabulary_.pieces();
  for (int layer = 0; layer < static_cast<int>(spec.layers.size()); ++layer) {
    FACET_ASSIGN_OR_RETURN(LayerPlan layer_plan, PlanLayer(model, spec, layer));
    degree_max = std::min({degree_max, layer_plan.heads.pieces(), layer_plan.ffn.pieces()});
    plan.layers_.push_back(std::move(layer_plan));
  }
  if (world < 1 || world > degree_max) {
    return InvalidArgument(
        "tensor-parallel degree {}: this model splits into 1 to {} ranks ({} query heads)", world,
        degree_max, spec.layers[0].heads);
  }
  for (int rank = 0; rank < world; ++rank) {
    plan.vocabulary_rank_end_.push_back(plan.VocabularyRows(rank).end);
  }
  return plan;
}

LayerShard ShardPlan::Layer(const ModelSpec& spec, int layer, int rank) const {
  const LayerSpec& layer_spec = spec.layers[layer];
  const LayerPlan& plan = layers_[layer];
  const int head_begin = plan.heads.rank_begin(rank, world_);
  const int head_end = plan.heads.rank_begin(rank + 1, world_);
  const int ffn_begin = plan.ffn.rank_begin(rank, world_);
  const int ffn_end = plan.ffn.rank_begin(rank + 1, world_);
  LayerShard shard;
  shard.heads = {plan.heads.start(head_begin), plan.heads.end(head_end - 1)};
  const int64_t heads_per_kv = layer_spec.heads / layer_spec.kv_heads;
  shard.kv_heads = {shard.heads.begin / heads_per_kv, (shard.heads.end - 1) / heads_per_kv + 1};
  shard.ffn = {plan.ffn.start(ffn_begin), plan.ffn.end(ffn_end - 1)};
  shard.attention_leaves = MakeLeafCut(plan.heads, head_begin, head_end, layer_spec.head_dim);
  shard.ffn_leaves = MakeLeafCut(plan.ffn, ffn_begin, ffn_end, 1);
  return shard;
}

Span ShardPlan::VocabularyRows(int rank) const {
  const int begin = vocabulary_.rank_begin(rank, world_);
  const int end = vocabulary_.rank_begin(rank + 1, world_);
  return {vocabulary_.start(begin), vocabulary_.end(end - 1)};
}

VocabularySlices ShardPlan::Slices(int rank) const {
  VocabularySlices slices;
  slices.first_id = static_cast<int32_t>(VocabularyRows(rank).begin);
  slices.starts = vocabulary_.RelativeStarts(vocabulary_.rank_begin(rank, world_),
                                             vocabulary_.rank_begin(rank + 1, world_));
  return slices;
}

int ShardPlan::OwnerOf(int64_t token) const {
  const auto end =
      std::upper_bound(vocabulary_rank_end_.begin(), vocabulary_rank_end_.end(), token);
  FACET_CHECK(token >= 0 && end != vocabulary_rank_end_.end(), "token {}", token);
  return static_cast<int>(end - vocabulary_rank_end_.begin());
}

SumTree ShardPlan::AttentionTree(int layer) const {
  return SumTree(layers_[layer].heads.pieces(), layers_[layer].heads.rank_begins(world_));
}

SumTree ShardPlan::FfnTree(int layer) const {
  return SumTree(layers_[layer].ffn.pieces(), layers_[layer].ffn.rank_begins(world_));
}

}  // namespace facet
