#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/row_norm.cuh"

// Rotation, the store of keys and values, the merge of splits, and attention in the reference's
// order, for keys that tensor cores cannot take: scores by sixteen accumulators.

namespace facet::cuda {
namespace {

constexpr int kThreads = 128;
__device__ __forceinline__ float LoadElement(const PoolMemory& pool, int64_t at) {
  if (pool.half) return HalfToFloat(reinterpret_cast<const uint16_t*>(pool.data)[at]);
  return reinterpret_cast<const float*>(pool.data)[at];
}
__device__ __forceinline__ void StoreElement(const PoolMemory& pool, int64_t at, float value) {
  if (pool.half) {
    reinterpret_cast<uint16_t*>(pool.data)[at] = FloatToHalf(value);
  } else {
    reinterpret_cast<float*>(pool.data)[at] = value;
  }
}

// One head (queries, then keys, then values) of one row per block.
__global__ void RopeAndStoreKernel(AttentionLayer layer, RowPlaces places, float* qkv) {
  SharedMemory memory;
  const Shared<float> vector = memory.Array<float>(layer.head_dim);
  const int64_t row = BlockIndex().x;
  const int head = BlockIndex().y;
  const int heads = layer.heads + 2 * layer.kv_heads;
  float* x = qkv + (row * heads + head) * layer.head_dim;
  const int thread = ThreadIndex().x;

  const bool is_query = head < layer.heads;
  const bool is_value = head >= layer.heads + layer.kv_heads;
  const float* norm = is_query ? layer.q_norm : layer.k_norm;
  if (is_value || norm == nullptr) {
    for (int d = thread; d < layer.head_dim; d += kThreads) vector[d] = x[d];
  } else {
    const float inverse = InverseNorm(x, layer.head_dim, layer.norm_epsilon);
    for (int d = thread; d < layer.head_dim; d += kThreads) {
      vector[d] = MulRn(MulRn(x[d], inverse), norm[d]);
    }
  }
  Barrier();
  if (!is_value) {
    for (int i = thread; i < layer.pairs; i += kThreads) {
      const float c = layer.cosines[row * layer.pairs + i];
      const float s = layer.sines[row * layer.pairs + i];
      const float a = vector[i];
      const float b = vector[i + layer.pairs];
      vector[i] = FmaRn(a, c, -MulRn(b, s));
      vector[i + layer.pairs] = FmaRn(b, c, MulRn(a, s));
    }
    Barrier();
    for (int d = thread; d < layer.head_dim; d += kThreads) x[d] = vector[d];
  }
  if (is_query) return;
  const int kv_head = (head - layer.heads) % layer.kv_heads;
  const int64_t to =
      VectorAt(layer, places, row, is_value ? 1 : 0, kv_head, places.positions[row]);
  for (int d = thread; d < layer.head_dim; d += kThreads) {
    StoreElement(layer.pool, to + d, vector[d]);
  }
}

// The keys that a row sees in one split.
struct VisibleSplit {
  int begin;
  int end;
};
// Split `index`, counted from the row's first visible one; empty beyond the last.
__device__ __forceinline__ VisibleSplit SplitOf(const AttentionLayer& layer, int position,
                                                int index) {
  const int first = FirstVisible(layer, position);
  const int start = (first / kSplit + index) * kSplit;
  const int end = position + 1 < start + kSplit ? position + 1 : start + kSplit;
  return {first > start ? first : start, end};
}

// Scores of a split's keys: half a warp per key, an accumulator per lane.
__device__ __forceinline__ void ScoreSplit(const AttentionLayer& layer, const RowPlaces& places,
                                           int64_t row, int kv_head, const VisibleSplit& split,
                                           Shared<float> query, Shared<float> scores) {
  const int lane = ThreadIndex().x % kHalfWarp;
  const int half_warp = ThreadIndex().x / kHalfWarp;
  for (int i = half_warp; i < kSplit; i += kThreads / kHalfWarp) {
    const int position = split.begin / kSplit * kSplit + i;
    const bool visible = position >= split.begin && position < split.end;
    float a = 0;
    if (visible) {
      const int64_t key = VectorAt(layer, places, row, 0, kv_head, position);
      for (int d = lane; d < layer.head_dim; d += kHalfWarp) {
        a = FmaRn(query[d], LoadElement(layer.pool, key + d), a);
      }
    }
    const float score = MulRn(TreeOfLanes(a), layer.scale);
    if (visible && lane == 0) {
      scores[i] = layer.soft_cap == 0 ? score : SoftCappedOf(score, layer.soft_cap);
    }
  }
}

// The largest of a split's scores; the first warp calls it.
__device__ __forceinline__ float LargestScore(int begin, int end, Shared<float> scores) {
  float largest = NegativeInfinity();
  for (int i = begin + ThreadIndex().x; i < end; i += kWarpSize) {
    const float score = scores[i];
    largest = largest < score ? score : largest;
  }
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const float other = ShuffleXor(largest, mask);
    largest = largest < other ? other : largest;
  }
  return largest;
}

// The canonical sum of a split's probabilities; the first warp calls it.
__device__ __forceinline__ float SumProbabilities(int begin, int end, Shared<float> scores) {
  const int lane = ThreadIndex().x;
  float a = 0;
  if (lane < kHalfWarp) {
    for (int i = lane; i < kSplit; i += kHalfWarp) {
      if (i >= begin && i < end) a = AddRn(a, scores[i]);
    }
  }
  return TreeOfLanes(a);
}

// One row, one head and one split per block: (largest score, sum, weighted values).
__global__ void AttendSplitKernel(AttentionLayer layer, RowPlaces places, AttentionPass pass) {
  SharedMemory memory;
  const Shared<float> query = memory.Array<float>(layer.head_dim);
  FACET_SHARED(float, scores, kSplit);  // then probabilities
  FACET_SHARED(float, largest, 1);
  const int64_t row = pass.first_row + static_cast<int>(BlockIndex().x);
  const int head = BlockIndex().y;
  const int slot = BlockIndex().z;
  const int thread = ThreadIndex().x;
  const VisibleSplit split = SplitOf(layer, places.positions[row], pass.first_split + slot);
  if (split.begin >= split.end) return;  // the whole block
  const int kv_head = layer.kv_of_head[head];
  const int heads = layer.heads + 2 * layer.kv_heads;
  const float* q = pass.qkv + (row * heads + head) * layer.head_dim;
  for (int d = thread; d < layer.head_dim; d += kThreads) query[d] = q[d];
  Barrier();
  ScoreSplit(layer, places, row, kv_head, split, query, scores);
  Barrier();
  const int origin = split.begin / kSplit * kSplit;
  const int begin = split.begin - origin;
  const int end = split.end - origin;
  if (thread < kWarpSize) {
    const float m = LargestScore(begin, end, scores);
    if (thread == 0) largest[0] = m;
  }
  Barrier();
  const float m = largest[0];
  if (thread >= begin && thread < end) scores[thread] = Exp(SubRn(scores[thread], m));
  Barrier();
  const int64_t rank = (int64_t{BlockIndex().x} * layer.heads + head) * pass.splits + slot;
  float* partial = pass.partials + rank * (layer.head_dim + 2);
  if (thread < kWarpSize) {
    const float sum = SumProbabilities(begin, end, scores);
    if (thread == 0) {
      partial[0] = m;
      partial[1] = sum;
    }
  }
  for (int d = thread; d < layer.head_dim; d += kThreads) {
    float o = 0;
    for (int i = begin; i < end; ++i) {
      const int64_t value = VectorAt(layer, places, row, 1, kv_head, origin + i);
      o = FmaRn(scores[i], LoadElement(layer.pool, value + d), o);
    }
    partial[2 + d] = o;
  }
}

// A running total of splits, for one dimension.
struct Total {
  float max;
  float sum;
  float out;
};
__device__ __forceinline__ void Merge(float max, float sum, float out, Total* total) {
  const SplitWeights weights = WeightsOf(total->max, max);
  total->max = weights.max;
  total->sum = FmaRn(total->sum, weights.kept, MulRn(sum, weights.added));
  total->out = FmaRn(total->out, weights.kept, MulRn(out, weights.added));
}

// Merges a pass's splits of one row and head into the total, in position order.
__global__ void MergeSplitsKernel(AttentionLayer layer, RowPlaces places, AttentionPass pass) {
  const int64_t row = pass.first_row + static_cast<int>(BlockIndex().x);
  const int head = BlockIndex().y;
  const int64_t rank = int64_t{BlockIndex().x} * layer.heads + head;
  const int64_t stride = layer.head_dim + 2;
  float* kept = pass.totals + rank * stride;
  const float* partials = pass.partials + rank * pass.splits * stride;
  float* out = pass.out + (row * layer.heads + head) * layer.head_dim;
  const int position = places.positions[row];
  const bool begun = pass.first_split > 0;
  const float kept_max = begun ? kept[0] : 0.0f;
  const float kept_sum = begun ? kept[1] : 0.0f;
  Barrier();  // everyone has read what one thread writes below
  for (int d = ThreadIndex().x; d < layer.head_dim; d += kThreads) {
    Total total = {kept_max, kept_sum, begun ? kept[2 + d] : 0.0f};
    for (int slot = 0; slot < pass.splits; ++slot) {
      const VisibleSplit split = SplitOf(layer, position, pass.first_split + slot);
      if (split.begin >= split.end) break;
      const float* partial = partials + slot * stride;
      if (!begun && slot == 0) {
        total = {partial[0], partial[1], partial[2 + d]};
      } else {
        Merge(partial[0], partial[1], partial[2 + d], &total);
      }
    }
    if (pass.last) {
      out[d] = MulRn(total.out, DivRn(1.0f, total.sum));
      continue;
    }
    kept[2 + d] = total.out;
    if (d == 0) {
      kept[0] = total.max;
      kept[1] = total.sum;
    }
  }
}

uint32_t Rounded(int floats) { return static_cast<uint32_t>(floats + 3) / 4 * 16; }

}  // namespace

int RopeAndStore(Stream stream, const AttentionLayer& layer, const RowPlaces& places, int rows,
                 float* qkv) {
  if (rows == 0) return 0;
  const LaunchShape shape{{static_cast<unsigned>(rows),
                           static_cast<unsigned>(layer.heads + 2 * layer.kv_heads)},
                          {kThreads},
                          Rounded(layer.head_dim)};
  return Launch(stream, shape, RopeAndStoreKernel, layer, places, qkv);
}

int Attend(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
           const AttentionPass& pass) {
  if (pass.rows == 0) return 0;
  const unsigned rows = static_cast<unsigned>(pass.rows);
  const unsigned heads = static_cast<unsigned>(layer.heads);
  const LaunchShape splits{{rows, heads, static_cast<unsigned>(pass.splits)},
                           {kThreads},
                           Rounded(layer.head_dim)};
  const int code = Launch(stream, splits, AttendSplitKernel, layer, places, pass);
  return code != 0 ? code : MergeSplits(stream, layer, places, pass);
}

int MergeSplits(Stream stream, const AttentionLayer& layer, const RowPlaces& places,
                const AttentionPass& pass) {
  const LaunchShape shape{
      {static_cast<unsigned>(pass.rows), static_cast<unsigned>(layer.heads)}, {kThreads}, 0};
  return Launch(stream, shape, MergeSplitsKernel, layer, places, pass);
}

}  // namespace facet::cuda
