#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/kernels.h"

// Attention over half-precision keys and values on tensor cores (mma.m16n8k16). A block takes pairs
// of a row and a query head that read the same KV head, 16 for every four of its warps, and one
// split of 64 keys after the other. Four warps cut the scores of their pairs by keys and the values
// by dimensions, and merge the splits in position order in registers; or the block takes one split
// only, and MergeSplits() does the same merging. A pair's result depends on nothing but its own row
// of a fragment, so how many others are computed beside it never shows. Queries and weights are two
// halves each, high and low, so that no more than a float's own rounding is lost before the sums.

namespace facet::cuda {
namespace {

// Where a lane of a warp stands in the fragments of mma, and in the matrices of ldmatrix.
struct Lane {
  int group;   // lane / 4 (the ISA's word): row of a result
  int t;       // lane % 4: columns 2t and 2t + 1
  int row;     // of the matrix that it names to ldmatrix
  int matrix;
};
__device__ __forceinline__ Lane LaneOfWarp() {
  const int lane = ThreadIndex().x % kWarpSize;
  return {lane / 4, lane % 4, lane % 8, lane / 8};
}
// Where lane `lane` begins in four matrices that lie two by two: down first, or across first.
__device__ __forceinline__ int DownFirst(const Lane& lane, int pitch) {
  return (lane.row + lane.matrix % 2 * 8) * pitch + lane.matrix / 2 * 8;
}
__device__ __forceinline__ int AcrossFirst(const Lane& lane, int pitch) {
  return (lane.row + lane.matrix / 2 * 8) * pitch + lane.matrix % 2 * 8;
}

__device__ __forceinline__ float ScoreOf(const AttentionLayer& layer, float high, float low,
                                         float unscale) {
  const float score = MulRn(MulRn(AddRn(high, low), unscale), layer.scale);
  return layer.soft_cap == 0 ? score : SoftCappedOf(score, layer.soft_cap);
}

// Scores of the group's pairs with the warp's sixteen keys: the high and the low halves of the
// queries have a sum each, in ascending dimension.
__device__ __forceinline__ void ScoreKeys(const AttentionLayer& layer, const TileMemory& memory) {
  const Lane lane = LaneOfWarp();
  const int first_key = WarpOfGroup() * kWarpKeys;
  const int query_at = FirstOfGroup() * memory.pitch + DownFirst(lane, memory.pitch);
  const int key_at = first_key * memory.pitch + AcrossFirst(lane, memory.pitch);
  float high[2][4] = {};
  float low[2][4] = {};
  for (int d = 0; d < memory.width; d += 16) {
    uint32_t query_high[4], query_low[4], keys[4];
    LoadMatrix4(query_high, memory.query_high, query_at + d);
    LoadMatrix4(query_low, memory.query_low, query_at + d);
    LoadMatrix4(keys, memory.keys, key_at + d);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint32_t b[2] = {keys[2 * n], keys[2 * n + 1]};
      MmaF16(high[n], query_high, b);
      MmaF16(low[n], query_low, b);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pair = FirstOfGroup() + lane.group + 8 * half;
    const float unscale = memory.unscale[pair];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const F32x2 scores = {ScoreOf(layer, high[n][2 * half], low[n][2 * half], unscale),
                            ScoreOf(layer, high[n][2 * half + 1], low[n][2 * half + 1], unscale)};
      memory.scores.StoreVector<F32x2>(pair * kScorePitch + first_key + 8 * n + 2 * lane.t, scores);
    }
  }
}

// The keys of a split that a pair sees, counted in it: all of begin <= key < end.
struct VisibleKeys {
  int begin;
  int end;
  bool first;  // nothing has been merged before
};
__device__ __forceinline__ VisibleKeys KeysOf(const AttentionLayer& layer, const RowPlaces& places,
                                              const Tile& tile, int pair, int split, bool direct) {
  if (pair >= tile.pairs) return {0, 0, false};
  const int position = places.positions[tile.RowOf(pair)];
  const int first = FirstVisible(layer, position);
  const int origin = split * kSplit;
  return {first - origin, position + 1 - origin, !direct || split == first / kSplit};
}

// One lane per pair: what the current split adds to the total.
__device__ __forceinline__ void FoldSplit(const VisibleKeys& keys, int pair, float max, float sum,
                                          const TileMemory& memory) {
  if (keys.first) {
    memory.fold[pair] = kFirst;
    memory.max[pair] = max;
    memory.sum[pair] = sum;
    return;
  }
  const SplitWeights weights = WeightsOf(memory.max[pair], max);
  memory.fold[pair] = kMerge;
  memory.max[pair] = weights.max;
  memory.sum[pair] = FmaRn(memory.sum[pair], weights.kept, MulRn(sum, weights.added));
  memory.kept[pair] = weights.kept;
  memory.added[pair] = weights.added;
}

// Weights exp(score - largest) of the split's keys, their canonical sum, and what to do with them.
// Keys that a pair does not see weigh nothing.
__device__ __forceinline__ void WeighKeys(const AttentionLayer& layer, const RowPlaces& places,
                                          const Tile& tile, int split, bool direct,
                                          const TileMemory& memory) {
  constexpr int kKeysPerLane = kSplit / kHalfWarp;
  const int lane = ThreadIndex().x % kHalfWarp;
  for (int i = 0; i < 2; ++i) {
    const int pair = PairOfHalfWarp(i);
    const VisibleKeys keys = KeysOf(layer, places, tile, pair, split, direct);
    float scores[kKeysPerLane];
    float max = NegativeInfinity();
#pragma unroll
    for (int k = 0; k < kKeysPerLane; ++k) {
      const int key = lane + k * kHalfWarp;
      scores[k] = memory.scores[pair * kScorePitch + key];
      const bool visible = key >= keys.begin && key < keys.end;
      max = visible && max < scores[k] ? scores[k] : max;
    }
    max = LargestOfLanes(max);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kKeysPerLane; ++k) {
      const int key = lane + k * kHalfWarp;
      const bool visible = key >= keys.begin && key < keys.end;
      const float weight = visible ? Exp(SubRn(scores[k], max)) : 0.0f;
      sum = AddRn(sum, weight);
      StoreHalves(MulRn(weight, kWeightScale), pair * kWeightPitch + key, memory.weight_high,
                  memory.weight_low);
    }
    sum = TreeOfLanes(sum);
    if (lane != 0) continue;
    const bool any = keys.end > 0 && keys.begin < kSplit && keys.begin < keys.end;
    if (any) {
      FoldSplit(keys, pair, max, sum, memory);
    } else {
      memory.fold[pair] = kSkip;
    }
  }
}

// A warp's share of a result: kUnits times 16 dimensions of its group's pairs, every fourth 16.
template <int kUnits>
using Fragments = float[kUnits][2][4];

__device__ __forceinline__ int FirstDimension(int unit) {
  return 16 * (WarpOfGroup() + kWarps * unit);
}

// The split's weighted values, in ascending position.
template <int kUnits>
__device__ __forceinline__ void AddValues(const TileMemory& memory, Fragments<kUnits>& values) {
  const Lane lane = LaneOfWarp();
  const int weight_at = FirstOfGroup() * kWeightPitch + DownFirst(lane, kWeightPitch);
  const int value_at = DownFirst(lane, memory.pitch);
#pragma unroll
  for (int key = 0; key < kSplit; key += 16) {
    uint32_t high[4], low[4];
    LoadMatrix4(high, memory.weight_high, weight_at + key);
    LoadMatrix4(low, memory.weight_low, weight_at + key);
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
      if (FirstDimension(unit) >= memory.width) continue;  // the whole warp
      uint32_t v[4];
      LoadMatrix4Transposed(v, memory.values, value_at + key * memory.pitch + FirstDimension(unit));
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const uint32_t b[2] = {v[2 * n], v[2 * n + 1]};
        MmaF16(values[unit][n], high, b);
        MmaF16(values[unit][n], low, b);
      }
    }
  }
}

template <int kUnits>
__device__ __forceinline__ void FoldValues(const TileMemory& memory,
                                           const Fragments<kUnits>& values,
                                           Fragments<kUnits>& total) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pair = FirstOfGroup() + LaneOfWarp().group + 8 * half;
    const int32_t fold = memory.fold[pair];
    if (fold == kSkip) continue;
    float kept = 0, added = 0;
    if (fold == kMerge) {
      kept = memory.kept[pair];
      added = memory.added[pair];
    }
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float value = MulRn(values[unit][i / 2][2 * half + i % 2], kWeightUnscale);
        float& sum = total[unit][i / 2][2 * half + i % 2];
        sum = fold == kFirst ? value : FmaRn(sum, kept, MulRn(value, added));
      }
    }
  }
}

// Where a pair's values go: to the result, or to its place among the pass's partial results; null
// where `split` is not among those that the pass computes for this row.
__device__ __forceinline__ float* TargetOf(const AttentionLayer& layer, const RowPlaces& places,
                                           const AttentionPass& pass, const Tile& tile, int pair,
                                           int split) {
  const int row = tile.RowOf(pair);
  const int64_t vector = int64_t{row} * layer.heads + tile.HeadOf(layer, pair);
  if (pass.direct) return pass.out + vector * layer.head_dim;
  const int first = FirstVisible(layer, places.positions[row]) / kSplit;
  const int slot = split - first - pass.first_split;
  if (slot < 0 || slot >= pass.splits) return nullptr;
  return pass.partials + (vector * pass.splits + slot) * (layer.head_dim + 2) + 2;
}

template <int kUnits>
__device__ __forceinline__ void StoreTotals(const AttentionLayer& layer, const RowPlaces& places,
                                            const AttentionPass& pass, const Tile& tile, int split,
                                            const TileMemory& memory,
                                            const Fragments<kUnits>& total) {
  const Lane lane = LaneOfWarp();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int pair = FirstOfGroup() + lane.group + 8 * half;
    if (pair >= tile.pairs) continue;
    const int32_t fold = memory.fold[pair];
    if (fold == kSkip && !pass.direct) continue;
    float* const to = TargetOf(layer, places, pass, tile, pair, split);
    if (to == nullptr) continue;
    const float factor = pass.direct ? DivRn(1.0f, memory.sum[pair]) : 1.0f;
#pragma unroll
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int d = FirstDimension(unit) + 8 * n + 2 * lane.t;
        const float* values = &total[unit][n][2 * half];
        if (d >= layer.head_dim) continue;
        StoreVector<F32x2>(to + d, {MulRn(values[0], factor), MulRn(values[1], factor)});
      }
    }
    if (!pass.direct && FirstDimension(0) == 0 && lane.t == 0) {
      StoreVector<F32x2>(to - 2, {memory.max[pair], memory.sum[pair]});
    }
  }
}

// While a split's scores are weighed its successor's keys are on their way, while it is scored its
// values are.
template <int kUnits, int kGroups>
__global__ void __launch_bounds__(kGroups * kGroupThreads)
    AttendTilesKernel(AttentionLayer layer, RowPlaces places, RowTiles tiles, AttentionPass pass) {
  Tile tile;
  if (!FindTile(layer, places, tiles, kGroups * kPairs, &tile)) return;  // the whole block
  int split = tile.begin / kSplit;
  int end = (tile.end - 1) / kSplit + 1;
  if (!pass.direct) {
    split += pass.first_split + static_cast<int>(BlockIndex().z);
    if (split >= end) return;
    end = split + 1;
  }
  const TileMemory memory = CutMemory(layer.head_dim, kGroups * kPairs);
  StartCopy(layer, places, tile, split, 0, memory);
  CopyAsyncCommit();
  StartCopy(layer, places, tile, split, 1, memory);
  CopyAsyncCommit();
  StageQueries(layer, tile, pass.qkv, memory);
  Fragments<kUnits> total = {};
  for (; split < end; ++split) {
    CopyAsyncWait<1>();
    Barrier();  // keys and queries are there
    ScoreKeys(layer, memory);
    Barrier();  // scores are there, keys have been read
    if (split + 1 < end) StartCopy(layer, places, tile, split + 1, 0, memory);
    CopyAsyncCommit();
    WeighKeys(layer, places, tile, split, pass.direct, memory);
    CopyAsyncWait<1>();
    Barrier();  // weights and values are there
    Fragments<kUnits> values = {};
    AddValues<kUnits>(memory, values);
    FoldValues<kUnits>(memory, values, total);
    if (split + 1 == end) break;
    Barrier();  // values and what to do with them have been read
    StartCopy(layer, places, tile, split + 1, 1, memory);
    CopyAsyncCommit();
  }
  StoreTotals<kUnits>(layer, places, pass, tile, split, memory, total);
}

// The most pairs that a tile of rows has with one KV head.
int PairsOf(const AttentionLayer& layer, const RowTiles& tiles) {
  int heads = 0;
  for (int k = 0; k < layer.kv_heads; ++k) {
    const int own = layer.first_head[k + 1] - layer.first_head[k];
    heads = own > heads ? own : heads;
  }
  return tiles.rows_max * heads;
}

// Groups of a block when there are pairs enough for two: they share the keys that it copies. As
// many as an sm_80's shared memory holds.
constexpr int WideGroups(int units) { return units <= 2 ? 4 : 2; }

template <int kUnits, int kGroups>
int LaunchTiles(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                const RowTiles& tiles, const AttentionPass& pass) {
  constexpr int kBlockPairs = kGroups * kPairs;
  const int parts = (PairsOf(layer, tiles) + kBlockPairs - 1) / kBlockPairs;
  // The rows of a tile, at most a split long, may begin in two neighbouring splits.
  static_assert(kTileTokens <= kSplit);
  const int splits = pass.direct ? 1 : pass.splits + (layer.window > 0 && tiles.rows_max > 1);
  const LaunchShape shape{
      {static_cast<unsigned>(tiles.count), static_cast<unsigned>(layer.kv_heads * parts),
       static_cast<unsigned>(splits)},
      {kGroups * kGroupThreads},
      MemoryBytes(layer.head_dim, kBlockPairs)};
  return Launch(stream, shape, AttendTilesKernel<kUnits, kGroups>, layer, places, tiles, pass);
}

template <int kUnits>
int LaunchGroups(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                 const RowTiles& tiles, const AttentionPass& pass) {
  if (PairsOf(layer, tiles) <= kPairs) {
    return LaunchTiles<kUnits, 1>(stream, layer, places, tiles, pass);
  }
  return LaunchTiles<kUnits, WideGroups(kUnits)>(stream, layer, places, tiles, pass);
}

}  // namespace

int TileBlocks(const AttentionLayer& layer, const RowTiles& tiles) {
  return tiles.count * layer.kv_heads * ((PairsOf(layer, tiles) + kPairs - 1) / kPairs);
}

int AttendTiles(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                const RowTiles& tiles, const AttentionPass& pass) {
  if (tiles.count == 0) return 0;
  constexpr int kUnitsMax = kTensorHeadMax / (16 * kWarps);
  const int units = (WidthOf(layer.head_dim) / 16 + kWarps - 1) / kWarps;
  const int code = units == 1   ? LaunchGroups<1>(stream, layer, places, tiles, pass)
                   : units == 2 ? LaunchGroups<2>(stream, layer, places, tiles, pass)
                                : LaunchGroups<kUnitsMax>(stream, layer, places, tiles, pass);
  return code != 0 || pass.direct ? code : MergeSplits(stream, layer, places, pass);
}

}  // namespace facet::cuda
