#ifndef FACET_KERNELS_CUDA_ATTENTION_TILE_CUH_
#define FACET_KERNELS_CUDA_ATTENTION_TILE_CUH_

// What a block of attention on tensor cores works on: its pairs of a row and a head, its shared
// memory, and how queries, keys and values come there.

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/kernels.h"

namespace facet::cuda {

inline constexpr int kPairs = 16;                  // what one mma takes
inline constexpr int kWarps = 4;                   // that share them: a group
inline constexpr int kGroupThreads = kWarps * kWarpSize;
inline constexpr int kWarpKeys = kSplit / kWarps;  // of a split, that a warp scores
inline constexpr int kLanesPerKey = 8;             // that copy one key
inline constexpr int kCopied = 8;                  // halves in one copy
// Rows of halves lie an odd number of 16 bytes apart: ldmatrix then reads eight of them from all 32
// banks. Rows of scores are written and read by half-warps two rows apart, free of conflicts too.
inline constexpr int kPad = 8;
inline constexpr int kWeightPitch = kSplit + kPad;
inline constexpr int kScorePitch = kSplit + kPad;
// Weights are at most 1; times 2^15 their low halves are no subnormals.
inline constexpr float kWeightScale = 0x1p15f;
inline constexpr float kWeightUnscale = 0x1p-15f;

__host__ __device__ constexpr int WidthOf(int head_dim) { return (head_dim + 15) / 16 * 16; }

// What a block attends. Pair i is the step's row and the query head that it names.
struct Tile {
  int first_row;   // of the step
  int kv_head;
  int first_head;  // in layer.head_order
  int heads;       // that read kv_head
  int first_pair;  // in the row tile, head by head and row by row
  int pairs;       // what fragments have beyond them is computed as zeros and not stored
  int begin;       // positions of the keys that any of its rows sees
  int end;
  __device__ __forceinline__ int RowOf(int pair) const {
    return first_row + (first_pair + pair) / heads;
  }
  __device__ __forceinline__ int HeadOf(const AttentionLayer& layer, int pair) const {
    return layer.head_order[first_head + (first_pair + pair) % heads];
  }
};

// False: the block has nothing to do.
__device__ __forceinline__ bool FindTile(const AttentionLayer& layer, const RowPlaces& places,
                                         const RowTiles& tiles, int pairs, Tile* tile) {
  const int per_head = GridSize().y / layer.kv_heads;
  const int index = tiles.count - 1 - static_cast<int>(BlockIndex().x);  // the longest come first
  tile->first_row = tiles.first_rows[index];
  tile->kv_head = BlockIndex().y / per_head;
  tile->first_head = layer.first_head[tile->kv_head];
  tile->heads = layer.first_head[tile->kv_head + 1] - tile->first_head;
  tile->first_pair = BlockIndex().y % per_head * pairs;
  const int left = tiles.rows[index] * tile->heads - tile->first_pair;
  if (left <= 0) return false;
  tile->pairs = left < pairs ? left : pairs;
  tile->begin = FirstVisible(layer, places.positions[tile->RowOf(0)]);
  tile->end = places.positions[tile->RowOf(tile->pairs - 1)] + 1;
  return true;
}

// Shared memory; arrays of `pairs` rows belong to the groups in turn.
struct TileMemory {
  int width;  // head_dim, rounded up to what one mma takes; zeros fill it up
  int pitch;
  Shared<uint16_t> query_high, query_low;    // [pairs, pitch]
  Shared<uint16_t> keys, values;             // [kSplit, pitch]
  Shared<float> scores;                      // [pairs, kScorePitch]
  Shared<uint16_t> weight_high, weight_low;  // [pairs, kWeightPitch], times kWeightScale
  Shared<float> unscale;                     // [pairs]: what queries were divided by
  Shared<float> max, sum;                    // [pairs]: of the splits so far
  Shared<int32_t> fold;                      // [pairs]: what becomes of the current split's values
  Shared<float> kept, added;                 // [pairs]: SplitWeights, where it is merged
};
// What a split does to a pair's total.
enum Fold : int32_t { kSkip, kFirst, kMerge };

__device__ __forceinline__ TileMemory CutMemory(int head_dim, int pairs) {
  SharedMemory memory;
  TileMemory m;
  m.width = WidthOf(head_dim);
  m.pitch = m.width + kPad;
  m.query_high = memory.Array<uint16_t>(pairs * m.pitch);
  m.query_low = memory.Array<uint16_t>(pairs * m.pitch);
  m.keys = memory.Array<uint16_t>(kSplit * m.pitch);
  m.values = memory.Array<uint16_t>(kSplit * m.pitch);
  m.scores = memory.Array<float>(pairs * kScorePitch);
  m.weight_high = memory.Array<uint16_t>(pairs * kWeightPitch);
  m.weight_low = memory.Array<uint16_t>(pairs * kWeightPitch);
  m.unscale = memory.Array<float>(pairs);
  m.max = memory.Array<float>(pairs);
  m.sum = memory.Array<float>(pairs);
  m.fold = memory.Array<int32_t>(pairs);
  m.kept = memory.Array<float>(pairs);
  m.added = memory.Array<float>(pairs);
  return m;
}
inline uint32_t MemoryBytes(int head_dim, int pairs) {
  const int pitch = WidthOf(head_dim) + kPad;
  return static_cast<uint32_t>(2 * (2 * pairs + 2 * kSplit) * pitch +
                               pairs * (4 * kScorePitch + 2 * 2 * kWeightPitch + 6 * 4));
}

__device__ __forceinline__ int WarpOfGroup() {
  return static_cast<int>(ThreadIndex().x) / kWarpSize % kWarps;
}
// The first pair of the thread's group, counted in the block's.
__device__ __forceinline__ int FirstOfGroup() {
  return static_cast<int>(ThreadIndex().x) / kGroupThreads * kPairs;
}

// The two pairs that a half-warp looks after.
__device__ __forceinline__ int PairOfHalfWarp(int i) {
  const int half_warp = ThreadIndex().x / kHalfWarp;
  return half_warp / 2 * 4 + half_warp % 2 * 2 + i;
}

// The largest of the values of 16 neighbouring lanes, in all of them.
template <typename T>
__device__ __forceinline__ T LargestOfLanes(T value) {
  for (int mask = kHalfWarp / 2; mask > 0; mask /= 2) {
    const T other = ShuffleXor(value, mask);
    value = value < other ? other : value;
  }
  return value;
}

__device__ __forceinline__ void StoreHalves(float x, int at, Shared<uint16_t> high,
                                            Shared<uint16_t> low) {
  const uint16_t rounded = FloatToHalf(x);
  high[at] = rounded;
  low[at] = FloatToHalf(SubRn(x, HalfToFloat(rounded)));
}

// Queries times the power of two that puts their largest element between 2^14 and 2^15: none
// overflows, and what the low halves lose is nothing beside it.
__device__ __forceinline__ void StageQueries(const AttentionLayer& layer, const Tile& tile,
                                             const float* qkv, const TileMemory& memory) {
  const int lane = ThreadIndex().x % kHalfWarp;
  const int heads = layer.heads + 2 * layer.kv_heads;
  for (int i = 0; i < 2; ++i) {
    const int pair = PairOfHalfWarp(i);
    const bool real = pair < tile.pairs;
    const int64_t vector =
        real ? int64_t{tile.RowOf(pair)} * heads + tile.HeadOf(layer, pair) : 0;
    const float* q = qkv + vector * layer.head_dim;
    uint32_t largest = 0;
    for (int d = lane; d < layer.head_dim; d += kHalfWarp) {
      const uint32_t magnitude = FloatBits(q[d]) & 0x7fffffffu;
      largest = largest < magnitude ? magnitude : largest;
    }
    largest = LargestOfLanes(largest);
    const uint32_t exponent = largest >> 23 < 15u ? 15u : largest >> 23;
    const float scale = BitsFloat((268u - exponent) << 23);
    for (int d = lane; d < memory.width; d += kHalfWarp) {
      const float x = real && d < layer.head_dim ? MulRn(q[d], scale) : 0.0f;
      StoreHalves(x, pair * memory.pitch + d, memory.query_high, memory.query_low);
    }
    if (lane == 0) memory.unscale[pair] = BitsFloat((exponent - 14u) << 23);
  }
}

// Starts to copy a split's keys (which 0) or values (1), zeros for what no row of the tile sees.
__device__ __forceinline__ void StartCopy(const AttentionLayer& layer, const RowPlaces& places,
                                          const Tile& tile, int split, int which,
                                          const TileMemory& memory) {
  const auto* pool = reinterpret_cast<const uint16_t*>(layer.pool.data);
  const Shared<uint16_t> to = which == 0 ? memory.keys : memory.values;
  const int lane = ThreadIndex().x % kLanesPerKey;
  const int keys = static_cast<int>(BlockSize().x) / kLanesPerKey;  // at a time
  for (int key = ThreadIndex().x / kLanesPerKey; key < kSplit; key += keys) {
    const int position = split * kSplit + key;
    const bool seen = position >= tile.begin && position < tile.end;
    const uint16_t* from =
        seen ? pool + VectorAt(layer, places, tile.first_row, which, tile.kv_head, position) : pool;
    for (int d = lane * kCopied; d < memory.width; d += kLanesPerKey * kCopied) {
      const bool there = seen && d < layer.head_dim;
      CopyAsync16OrZero(to, key * memory.pitch + d, there ? from + d : pool, there);
    }
  }
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_ATTENTION_TILE_CUH_
