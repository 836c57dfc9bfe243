#ifndef FACET_SHARD_WORKER_MODEL_MODEL_SPEC_H_
#define FACET_SHARD_WORKER_MODEL_MODEL_SPEC_H_

// An architecture as values: everything the loader, the shard plan and the forward pass need to
// know about a model, read from its file by families.cc.

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoint/gguf.h"
#include "kernels/device.h"

namespace facet {

// One decoder layer: attention and a gated MLP, each behind an RMS norm.
struct LayerSpec {
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int64_t ffn = 0;
  int64_t window = 0;       // 0: attends to all earlier tokens
  float attention_scale = 1;
  float soft_cap = 0;       // of attention scores; 0: none
  int rope = 0;             // index into ModelSpec::ropes
  bool qk_norm = false;     // RMS norm of each q and k head before the rotation
  bool post_norms = false;  // RMS norm of attention's and the MLP's output before the residual add
  Activation activation = Activation::kSilu;
};

struct ModelSpec {
  std::string architecture;
  std::string description;  // general.name
  int width = 0;            // d_model
  int64_t vocabulary = 0;
  int context_tokens = 0;
  float epsilon = 0;
  float embedding_scale = 1;
  float logit_soft_cap = 0;  // 0: none
  bool tied_head = true;     // the embedding table is the output layer
  // q and k rows of a head are stored with rotation pairs adjacent; the loader separates them.
  bool rotation_pairs_adjacent = false;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

// Reads the spec of `model`. Unimplemented names an architecture Facet does not serve;
// InvalidArgument names the key whose value is missing, contradictory or out of bounds.
absl::StatusOr<ModelSpec> ReadModelSpec(const GgufModel& model);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_MODEL_SPEC_H_
