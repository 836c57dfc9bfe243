#include "shard_worker/model/weights.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "shard_worker/model/tensor_roles.h"
#include "shard_worker/model/tensor_source.h"

namespace facet {
namespace {

class Loader {
 public:
  Loader(const GgufModel& model, const ModelSpec& spec, const ShardPlan& plan, int rank,
         Device* device, bool screened_head, const std::function<void(int64_t, int64_t)>& progress,
         WeightImages images)
      : model_(model),
        spec_(spec),
        plan_(plan),
        rank_(rank),
        device_(device),
        screened_head_(screened_head),
        progress_(progress) {
    weights_.images = std::move(images);
  }

  absl::StatusOr<Weights> Load() {
    FACET_RETURN_IF_ERROR(CountWork());
    Weights& weights = weights_;
    const Span vocabulary = plan_.VocabularyRows(rank_);
    FACET_RETURN_IF_ERROR(
        LoadRows(TensorRole::kTokenEmbedding, 0, vocabulary, {}, &weights.embedding));
    if (!spec_.tied_head) {
      FACET_RETURN_IF_ERROR(LoadRows(TensorRole::kOutput, 0, vocabulary, {}, &weights.untied_head));
    }
    FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kOutputNorm, 0, &weights.output_norm));
    weights.layers.resize(spec_.layers.size());
    for (int layer = 0; layer < static_cast<int>(spec_.layers.size()); ++layer) {
      FACET_RETURN_IF_ERROR(LoadNorms(layer, &weights.layers[layer]));
      FACET_RETURN_IF_ERROR(LoadMatrices(layer, &weights.layers[layer]));
    }
    weights.packed_bytes = packed_bytes_;
    weights.slice_bytes = slice_bytes_;
    return std::move(weights_);
  }

 private:
  // What is mapped costs nothing, and vectors next to nothing.
  absl::Status CountWork() {
    for (const auto& [row, layer] : SharedTensors(spec_)) {
      if (weights_.images.Holds(row->role, layer)) continue;
      FACET_ASSIGN_OR_RETURN(const GgufTensor* tensor, FindRole(model_, spec_, row->role, layer));
      total_bytes_ += static_cast<int64_t>(tensor->data.size());
    }
    Worked(0);  // whoever shows a rate starts its clock here
    return absl::OkStatus();
  }

  absl::Status LoadNorms(int layer, LayerWeights* weights) {
    const LayerSpec& spec = spec_.layers[layer];
    FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kAttentionNorm, layer, &weights->attention_norm));
    FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kFfnNorm, layer, &weights->ffn_norm));
    if (spec.qk_norm) {
      FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kQueryNorm, layer, &weights->query_norm));
      FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kKeyNorm, layer, &weights->key_norm));
    }
    if (spec.post_norms) {
      FACET_RETURN_IF_ERROR(
          LoadVector(TensorRole::kAttentionPostNorm, layer, &weights->attention_post_norm));
      FACET_RETURN_IF_ERROR(LoadVector(TensorRole::kFfnPostNorm, layer, &weights->ffn_post_norm));
    }
    return absl::OkStatus();
  }

  absl::Status LoadMatrices(int layer, LayerWeights* weights) {
    const LayerSpec& spec = spec_.layers[layer];
    const LayerShard shard = plan_.Layer(spec_, layer, rank_);
    const int64_t head_dim = spec.head_dim;
    const auto rows_of = [&](Span heads) {
      return Span{heads.begin * head_dim, heads.end * head_dim};
    };
    const std::vector<int32_t> query_order =
        RowOrder(spec_, TensorRole::kQuery, layer, shard.heads);
    const std::vector<int32_t> key_order = RowOrder(spec_, TensorRole::kKey, layer, shard.kv_heads);
    FACET_RETURN_IF_ERROR(
        LoadRows(TensorRole::kQuery, layer, rows_of(shard.heads), query_order, &weights->query));
    FACET_RETURN_IF_ERROR(
        LoadRows(TensorRole::kKey, layer, rows_of(shard.kv_heads), key_order, &weights->key));
    FACET_RETURN_IF_ERROR(
        LoadRows(TensorRole::kValue, layer, rows_of(shard.kv_heads), {}, &weights->value));
    FACET_RETURN_IF_ERROR(LoadColumns(TensorRole::kAttentionOutput, layer, rows_of(shard.heads),
                                      shard.attention_leaves, &weights->attention_output));
    FACET_RETURN_IF_ERROR(LoadRows(TensorRole::kFfnGate, layer, shard.ffn, {}, &weights->gate));
    FACET_RETURN_IF_ERROR(LoadRows(TensorRole::kFfnUp, layer, shard.ffn, {}, &weights->up));
    return LoadColumns(TensorRole::kFfnDown, layer, shard.ffn, shard.ffn_leaves, &weights->down);
  }

  // Rows [rows.begin, rows.end), all columns; `order` permutes them.
  absl::Status LoadRows(TensorRole role, int layer, Span rows, std::span<const int32_t> order,
                        std::unique_ptr<Matrix>* matrix) {
    FACET_ASSIGN_OR_RETURN(const GgufTensor* tensor, FindRole(model_, spec_, role, layer));
    MatrixSource source = SourceOf(*tensor);
    source.rows = rows.size();
    source.data += rows.begin * source.row_stride;
    source.row_order = order;
    source.searched = screened_head_ && IsHead(spec_, role);
    return LoadMatrix(*tensor, role, layer, source, nullptr, matrix);
  }

  // All rows, columns [columns.begin, columns.end), cut into leaves.
  absl::Status LoadColumns(TensorRole role, int layer, Span columns, const LeafCut& leaves,
                           std::unique_ptr<Matrix>* matrix) {
    FACET_ASSIGN_OR_RETURN(const GgufTensor* tensor, FindRole(model_, spec_, role, layer));
    MatrixSource source = SourceOf(*tensor);
    source.columns = columns.size();
    source.data += RowBytes(tensor->type, columns.begin);
    return LoadMatrix(*tensor, role, layer, source, &leaves, matrix);
  }

  // From the packed file if that has the tensor, else packed from `source`, this rank's slice.
  absl::Status LoadMatrix(const GgufTensor& tensor, TensorRole role, int layer,
                          const MatrixSource& source, const LeafCut* leaves,
                          std::unique_ptr<Matrix>* matrix) {
    if (weights_.images.Holds(role, layer)) {
      FACET_ASSIGN_OR_RETURN(*matrix, weights_.images.Load(role, layer, leaves));
    } else {
      FACET_ASSIGN_OR_RETURN(*matrix, device_->LoadMatrix(source, leaves));
      Worked(static_cast<int64_t>(tensor.data.size()));
    }
    packed_bytes_ += (*matrix)->packed_bytes();
    slice_bytes_ += source.rows * RowBytes(source.type, source.columns);
    model_.Release(tensor);
    return absl::OkStatus();
  }

  absl::Status LoadVector(TensorRole role, int layer, Floats* out) {
    FACET_ASSIGN_OR_RETURN(const GgufTensor* tensor, FindRole(model_, spec_, role, layer));
    std::vector<float> host(static_cast<size_t>(tensor->shape[0]));
    std::memcpy(host.data(), tensor->data.data(), host.size() * sizeof(float));
    for (size_t i = 0; i < host.size(); ++i) {
      if (!std::isfinite(host[i])) return InvalidArgument("{}[{}]: not finite", tensor->name, i);
    }
    FACET_ASSIGN_OR_RETURN(*out, device_->AllocateFloats(tensor->shape[0]));
    device_->CopyIn(host, *out);
    const int64_t bytes = tensor->shape[0] * static_cast<int64_t>(sizeof(float));
    packed_bytes_ += bytes;
    slice_bytes_ += bytes;
    model_.Release(*tensor);
    return absl::OkStatus();
  }

  void Worked(int64_t bytes) {
    done_bytes_ += bytes;
    if (progress_ && total_bytes_ > 0) progress_(done_bytes_, total_bytes_);
  }

  const GgufModel& model_;
  const ModelSpec& spec_;
  const ShardPlan& plan_;
  const int rank_;
  Device* const device_;
  const bool screened_head_;
  const std::function<void(int64_t, int64_t)>& progress_;
  Weights weights_;
  int64_t total_bytes_ = 0;
  int64_t done_bytes_ = 0;
  int64_t packed_bytes_ = 0;
  int64_t slice_bytes_ = 0;
};

}  // namespace

absl::StatusOr<Weights> LoadWeights(const GgufModel& model, const ModelSpec& spec,
                                    const ShardPlan& plan, int rank, Device* device,
                                    bool screened_head,
                                    const std::function<void(int64_t, int64_t)>& progress,
                                    const WeightCache* cache) {
  FACET_RETURN_IF_ERROR(CheckTensors(model, spec));
  WeightImages images;
  if (cache != nullptr && device->images() != nullptr) {
    absl::StatusOr<WeightImages> opened = WeightImages::Open(
        model, spec, plan, rank, *device->images(), screened_head, *cache, progress);
    if (opened.ok()) {
      images = *std::move(opened);
    } else if (cache->warn) {
      cache->warn(fmt::format("packed weights are not kept: {}", MessageOf(opened.status())));
    }
  }
  return Loader(model, spec, plan, rank, device, screened_head, progress, std::move(images)).Load();
}

}  // namespace facet
