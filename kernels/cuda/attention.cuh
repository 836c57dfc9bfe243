#ifndef FACET_KERNELS_CUDA_ATTENTION_CUH_
#define FACET_KERNELS_CUDA_ATTENTION_CUH_

// What both forms of attention share: where keys lie, which of them a row sees, and how the
// results of two splits weigh when they are merged.

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/math.cuh"

namespace facet::cuda {

inline constexpr int kSplit = 64;  // kSplitTokens of device.h
inline constexpr int kHalfWarp = 16;

__device__ __forceinline__ float NegativeInfinity() { return BitsFloat(0xff800000u); }

// Where the head_dim elements of one key (which 0) or value (1) begin, counted in elements.
__device__ __forceinline__ int64_t VectorAt(const AttentionLayer& layer, const RowPlaces& places,
                                            int64_t row, int which, int kv_head, int position) {
  const PoolMemory& pool = layer.pool;
  const int32_t block = places.blocks[places.table_begins[row] + position / pool.block_tokens];
  const int64_t in_layer = (int64_t{layer.layer} * pool.blocks + block) * 2 + which;
  const int64_t token =
      (in_layer * layer.kv_heads + kv_head) * pool.block_tokens + position % pool.block_tokens;
  return token * layer.head_dim;
}

// The first position that a row at `position` sees.
__device__ __forceinline__ int FirstVisible(const AttentionLayer& layer, int position) {
  if (layer.window == 0 || position < layer.window) return 0;
  return static_cast<int>(position - layer.window + 1);
}
// What the results of the splits so far and of the next one are multiplied with.
struct SplitWeights {
  float max;  // of both
  float kept;
  float added;
};
__device__ __forceinline__ SplitWeights WeightsOf(float kept_max, float max) {
  const float larger = kept_max < max ? max : kept_max;
  return {larger, Exp(SubRn(kept_max, larger)), Exp(SubRn(max, larger))};
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_ATTENTION_CUH_
