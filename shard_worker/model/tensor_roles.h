#ifndef FACET_SHARD_WORKER_MODEL_TENSOR_ROLES_H_
#define FACET_SHARD_WORKER_MODEL_TENSOR_ROLES_H_

// Every tensor a model may have: its name, its shape and how it is split over ranks. The loader,
// the missing-tensor report, the shard plan and memory estimates read these rows and nothing else.

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoint/gguf.h"
#include "shard_worker/model/model_spec.h"

namespace facet {

enum class TensorRole {
  kTokenEmbedding, kOutput, kOutputNorm,
  kAttentionNorm, kQuery, kKey, kValue, kQueryNorm, kKeyNorm, kAttentionOutput,
  kAttentionPostNorm, kFfnNorm, kFfnGate, kFfnUp, kFfnDown, kFfnPostNorm,
};

enum class Split {
  kReplicated,
  kVocabulary,    // rows, by vocabulary slices
  kQueryHeads,    // rows, by the query heads of the rank's attention leaves
  kKvHeads,       // rows, by the KV heads those query heads read
  kHeadColumns,   // columns, by attention leaves
  kFfnRows,       // rows, by FFN leaves
  kFfnColumns,    // columns, by FFN leaves
};

struct TensorRow {
  TensorRole role;
  bool per_layer;
  std::string_view gguf;  // name; a layer's is "blk.N." + this
  Split split;
  // {columns, rows}; a vector has one row. `layer` is null for tensors of the whole model.
  std::array<int64_t, 2> (*shape)(const ModelSpec& spec, const LayerSpec* layer);
  bool (*present)(const ModelSpec& spec, const LayerSpec* layer);
};

std::span<const TensorRow> TensorRows();
const TensorRow& RowOf(TensorRole role);

// The tensors that ranks share out: those of the whole model, with layer 0, then layer by layer,
// each in the order of the table.
struct SharedTensor {
  const TensorRow* row;
  int layer;
};
std::vector<SharedTensor> SharedTensors(const ModelSpec& spec);

// The name in a GGUF file.
std::string GgufName(const TensorRow& row, int layer);

// The tensor of a role, checked: present, exactly the expected shape, a vector in F32.
absl::StatusOr<const GgufTensor*> FindRole(const GgufModel& model, const ModelSpec& spec,
                                           TensorRole role, int layer);

// Checks all tensors of the model; the message lists what is missing.
absl::Status CheckTensors(const GgufModel& model, const ModelSpec& spec);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_TENSOR_ROLES_H_
