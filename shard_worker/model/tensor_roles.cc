#include "shard_worker/model/tensor_roles.h"

#include <algorithm>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

using Shape = std::array<int64_t, 2>;
using Spec = const ModelSpec&;
using Layer = const LayerSpec*;

constexpr auto kAlways = [](Spec, Layer) { return true; };
constexpr auto kUntied = [](Spec spec, Layer) { return !spec.tied_head; };
constexpr auto kQkNorm = [](Spec, Layer layer) { return layer->qk_norm; };
constexpr auto kPostNorms = [](Spec, Layer layer) { return layer->post_norms; };

constexpr auto kWidthVector = [](Spec spec, Layer) { return Shape{spec.width, 1}; };
constexpr auto kHeadVector = [](Spec, Layer layer) { return Shape{layer->head_dim, 1}; };
constexpr auto kVocabularyMatrix = [](Spec spec, Layer) {
  return Shape{spec.width, spec.vocabulary};
};
constexpr auto kQueryMatrix = [](Spec spec, Layer layer) {
  return Shape{spec.width, int64_t{layer->heads} * layer->head_dim};
};
constexpr auto kKvMatrix = [](Spec spec, Layer layer) {
  return Shape{spec.width, int64_t{layer->kv_heads} * layer->head_dim};
};
constexpr auto kOutputMatrix = [](Spec spec, Layer layer) {
  return Shape{int64_t{layer->heads} * layer->head_dim, spec.width};
};
constexpr auto kFfnMatrix = [](Spec spec, Layer layer) { return Shape{spec.width, layer->ffn}; };
constexpr auto kDownMatrix = [](Spec spec, Layer layer) { return Shape{layer->ffn, spec.width}; };

constexpr TensorRow kRows[] = {
    {TensorRole::kTokenEmbedding, false, "token_embd.weight", Split::kVocabulary, kVocabularyMatrix, kAlways},
    {TensorRole::kOutput, false, "output.weight", Split::kVocabulary,
     kVocabularyMatrix, kUntied},
    {TensorRole::kOutputNorm, false, "output_norm.weight", Split::kReplicated,
     kWidthVector, kAlways},
    {TensorRole::kAttentionNorm, true, "attn_norm.weight", Split::kReplicated, kWidthVector, kAlways},
    {TensorRole::kQuery, true, "attn_q.weight", Split::kQueryHeads,
     kQueryMatrix, kAlways},
    {TensorRole::kKey, true, "attn_k.weight", Split::kKvHeads,
     kKvMatrix, kAlways},
    {TensorRole::kValue, true, "attn_v.weight", Split::kKvHeads,
     kKvMatrix, kAlways},
    {TensorRole::kQueryNorm, true, "attn_q_norm.weight", Split::kReplicated, kHeadVector, kQkNorm},
    {TensorRole::kKeyNorm, true, "attn_k_norm.weight", Split::kReplicated, kHeadVector, kQkNorm},
    {TensorRole::kAttentionOutput, true, "attn_output.weight", Split::kHeadColumns, kOutputMatrix, kAlways},
    {TensorRole::kAttentionPostNorm, true, "post_attention_norm.weight", Split::kReplicated, kWidthVector, kPostNorms},
    {TensorRole::kFfnNorm, true, "ffn_norm.weight", Split::kReplicated, kWidthVector, kAlways},
    {TensorRole::kFfnGate, true, "ffn_gate.weight", Split::kFfnRows,
     kFfnMatrix, kAlways},
    {TensorRole::kFfnUp, true, "ffn_up.weight", Split::kFfnRows, kFfnMatrix,
     kAlways},
    {TensorRole::kFfnDown, true, "ffn_down.weight", Split::kFfnColumns,
     kDownMatrix, kAlways},
    {TensorRole::kFfnPostNorm, true, "post_ffw_norm.weight", Split::kReplicated, kWidthVector, kPostNorms},
};

template <typename Visit>
absl::Status ForEachTensor(const ModelSpec& spec, const Visit& visit) {
  for (const TensorRow& row : kRows) {
    const int layers = row.per_layer ? static_cast<int>(spec.layers.size()) : 1;
    for (int layer = 0; layer < layers; ++layer) {
      const LayerSpec* layer_spec = row.per_layer ? &spec.layers[layer] : nullptr;
      if (row.present(spec, layer_spec)) FACET_RETURN_IF_ERROR(visit(row, layer));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::span<const TensorRow> TensorRows() { return kRows; }

std::vector<SharedTensor> SharedTensors(const ModelSpec& spec) {
  std::vector<SharedTensor> tensors;
  for (int layer = -1; layer < static_cast<int>(spec.layers.size()); ++layer) {
    for (const TensorRow& row : TensorRows()) {
      if (row.per_layer != (layer >= 0) || row.split == Split::kReplicated) continue;
      if (!row.present(spec, row.per_layer ? &spec.layers[layer] : nullptr)) continue;
      tensors.push_back({&row, std::max(layer, 0)});
    }
  }
  return tensors;
}

const TensorRow& RowOf(TensorRole role) {
  for (const TensorRow& row : kRows) {
    if (row.role == role) return row;
  }
  FACET_CHECK(false, "no row for tensor role {}", static_cast<int>(role));
  __builtin_unreachable();
}

std::string GgufName(const TensorRow& row, int layer) {
  return row.per_layer ? fmt::format("blk.{}.{}", layer, row.gguf) : std::string(row.gguf);
}

absl::StatusOr<const GgufTensor*> FindRole(const GgufModel& model, const ModelSpec& spec,
                                           TensorRole role, int layer) {
  const TensorRow& row = RowOf(role);
  const std::string name = GgufName(row, layer);
  const GgufTensor* tensor = model.FindTensor(name);
  if (tensor == nullptr) return InvalidArgument("{}: missing from the file", name);
  const Shape expected = row.shape(spec, row.per_layer ? &spec.layers[layer] : nullptr);
  if (tensor->shape != std::array<int64_t, 4>{expected[0], expected[1], 1, 1}) {
    return InvalidArgument("{}: expected [{}, {}], file has [{}, {}, {}, {}]", name, expected[0],
                           expected[1], tensor->shape[0], tensor->shape[1], tensor->shape[2],
                           tensor->shape[3]);
  }
  if (expected[1] == 1 && row.split == Split::kReplicated && tensor->type != TensorType::kF32) {
    return Unimplemented("{}: expected F32, file has {}", name, FormatOf(tensor->type).name);
  }
  return tensor;
}

absl::Status CheckTensors(const GgufModel& model, const ModelSpec& spec) {
  std::string missing;
  int count = 0;
  FACET_RETURN_IF_ERROR(ForEachTensor(spec, [&](const TensorRow& row, int layer) {
    const std::string name = GgufName(row, layer);
    if (model.FindTensor(name) == nullptr) {
      if (++count <= 8) missing += (missing.empty() ? "" : ", ") + name;
    }
    return absl::OkStatus();
  }));
  if (count > 0) {
    return InvalidArgument("{} tensors are missing from the file: {}{}", count, missing,
                           count > 8 ? ", ..." : "");
  }
  return ForEachTensor(spec, [&](const TensorRow& row, int layer) {
    return FindRole(model, spec, row.role, layer).status();
  });
}

}  // namespace facet
