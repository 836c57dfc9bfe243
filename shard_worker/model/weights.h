#ifndef FACET_SHARD_WORKER_MODEL_WEIGHTS_H_
#define FACET_SHARD_WORKER_MODEL_WEIGHTS_H_

// One rank's slice of a model, packed on its device.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoint/gguf.h"
#include "kernels/device.h"
#include "shard_worker/model/model_spec.h"
#include "shard_worker/model/shard_plan.h"
#include "shard_worker/model/weight_images.h"

namespace facet {

struct LayerWeights {
  Floats attention_norm, query_norm, key_norm, attention_post_norm, ffn_norm, ffn_post_norm;
  std::unique_ptr<Matrix> query, key, value, attention_output;
  std::unique_ptr<Matrix> gate, up, down;
};

struct Weights {
  WeightImages images;                  // what matrices may look into, so the last to go
  std::unique_ptr<Matrix> embedding;    // [vocabulary rows of the rank, width]
  std::unique_ptr<Matrix> untied_head;  // null where the embedding is the head
  Floats output_norm;
  std::vector<LayerWeights> layers;
  int64_t packed_bytes = 0;
  int64_t slice_bytes = 0;  // the same in the file

  const Matrix& head() const { return untied_head ? *untied_head : *embedding; }
};

// Packs rank `rank`'s slice, reading each byte of it once and releasing the file's pages behind.
// `screened_head`: the output layer is packed for searches that leave most of it unread.
// `progress` (may be empty) hears bytes done of bytes in all, from 0 on, of what is packed: nothing
// where all of it is there already. With a `cache`, what the file there holds is not packed but
// used where it is mapped; the file is made first if need be. Where there can be none, the rank
// packs for itself.
absl::StatusOr<Weights> LoadWeights(const GgufModel& model, const ModelSpec& spec,
                                    const ShardPlan& plan, int rank, Device* device,
                                    bool screened_head,
                                    const std::function<void(int64_t, int64_t)>& progress,
                                    const WeightCache* cache = nullptr);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_WEIGHTS_H_
