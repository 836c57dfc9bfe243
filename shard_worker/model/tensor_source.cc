#include "shard_worker/model/tensor_source.h"

#include <string>

namespace facet {

MatrixSource SourceOf(const GgufTensor& tensor) {
  MatrixSource source;
  source.name = std::string(tensor.name);
  source.type = tensor.type;
  source.rows = tensor.shape[1];
  source.columns = tensor.shape[0];
  source.data = tensor.data.data();
  source.row_stride = RowBytes(tensor.type, tensor.shape[0]);
  return source;
}

std::vector<int32_t> RowOrder(const ModelSpec& spec, TensorRole role, int layer, Span heads) {
  std::vector<int32_t> order;
  const bool rotated = role == TensorRole::kQuery || role == TensorRole::kKey;
  if (!rotated || !spec.rotation_pairs_adjacent) return order;
  const LayerSpec& layer_spec = spec.layers[layer];
  const int half = static_cast<int>(spec.ropes[layer_spec.rope].inverse_frequency.size());
  for (int64_t head = 0; head < heads.size(); ++head) {
    const int64_t base = head * layer_spec.head_dim;
    for (int i = 0; i < layer_spec.head_dim; ++i) {
      const int source = i < half ? 2 * i : i < 2 * half ? 2 * (i - half) + 1 : i;
      order.push_back(static_cast<int32_t>(base + source));
    }
  }
  return order;
}

bool IsHead(const ModelSpec& spec, TensorRole role) {
  return role == (spec.tied_head ? TensorRole::kTokenEmbedding : TensorRole::kOutput);
}

}  // namespace facet
