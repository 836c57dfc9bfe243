#ifndef FACET_SHARD_WORKER_MODEL_SHARD_PLAN_H_
#define FACET_SHARD_WORKER_MODEL_SHARD_PLAN_H_

// Who owns what. Heads, FFN columns and vocabulary rows are first cut into leaves and slices that
// depend on the model's tensors only; a rank owns a contiguous range of them. So the arithmetic,
// which follows leaves and slices, is the same at every degree.

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "checkpoint/gguf.h"
#include "kernels/device.h"
#include "kernels/sum_tree.h"
#include "shard_worker/model/model_spec.h"

namespace facet {

inline constexpr int kLeavesMax = 16;            // of attention, and of the FFN, per layer
inline constexpr int kVocabularySlicesMax = 64;
inline constexpr int kVocabularyUnit = 32;       // rows: a slice is a whole number of these

// `units` cut into `pieces` of nearly equal size: piece i is [i * units / pieces, ...).
class Cut {
 public:
  Cut() = default;
  // Pieces of whole units of `unit` elements, the last one clipped to `elements`.
  Cut(int64_t elements, int64_t unit, int pieces_max);

  int pieces() const { return static_cast<int>(starts_.size()) - 1; }
  int64_t start(int piece) const { return starts_[piece]; }
  int64_t end(int piece) const { return starts_[piece + 1]; }
  // The first piece of rank `rank` of `world`; rank == world gives pieces().
  int rank_begin(int rank, int world) const {
    return static_cast<int>(int64_t{rank} * pieces() / world);
  }
  std::vector<int> rank_begins(int world) const;
  // Starts of pieces [begin, end) relative to the first, and their total at the end.
  std::vector<int64_t> RelativeStarts(int begin, int end) const;

 private:
  std::vector<int64_t> starts_ = {0};
};

struct Span {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

// One layer's cuts.
struct LayerPlan {
  Cut heads;  // leaves, in query heads
  Cut ffn;    // leaves, in FFN columns
};

// One rank's share of one layer.
struct LayerShard {
  Span heads;     // query heads
  Span kv_heads;  // that they read
  Span ffn;       // columns
  LeafCut attention_leaves;  // of attn_output's columns
  LeafCut ffn_leaves;        // of ffn_down's columns
};

class ShardPlan {
 public:
  // InvalidArgument if the model cannot be split `world` ways; the message says which degrees
  // work. Reads tensor types, because leaves are whole quantisation blocks.
  static absl::StatusOr<ShardPlan> Make(const GgufModel& model, const ModelSpec& spec, int world);

  int world() const { return world_; }
  const std::vector<LayerPlan>& layers() const { return layers_; }
  const Cut& vocabulary() const { return vocabulary_; }

  LayerShard Layer(const ModelSpec& spec, int layer, int rank) const;
  Span VocabularyRows(int rank) const;
  VocabularySlices Slices(int rank) const;
  // Which rank owns the embedding row of a token.
  int OwnerOf(int64_t token) const;
  SumTree AttentionTree(int layer) const;
  SumTree FfnTree(int layer) const;

 private:
  int world_ = 1;
  std::vector<LayerPlan> layers_;
  Cut vocabulary_;
  std::vector<int64_t> vocabulary_rank_end_;  // first row past each rank's
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_MODEL_SHARD_PLAN_H_
