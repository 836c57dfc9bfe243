// One split of attention (64 keys at most) for a tile of queries, and the merging of splits.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_trees.h"
#include "kernels/cpu/vector_math.h"

namespace facet {
namespace FACET_ISA {
namespace {

constexpr float kInfinity = __builtin_inff();
constexpr int kSplit = 64;
// All queries of the tile visit this many keys or values before the next: of 256 floats each they
// fit into the first-level cache, all of a split's would not.
constexpr int kChunk = 32;

// Six queries at a time need 24 accumulators, and fewer loads per operation.
constexpr bool kManyRegisters = kWideTile;

FACET_INLINE constexpr int Smaller(int a, int b) { return a < b ? a : b; }
FACET_INLINE constexpr int Larger(int a, int b) { return a > b ? a : b; }

// Where keys or values are read: converted beforehand, or as they are stored. Of the latter some
// rows are read side by side, which no processor takes for a stream: whoever is done with elements
// [d, d + 16) of a row prefetches those of the row that is read in its place half a split later.
struct Converted {
  const float* vectors;
  int stride;
  [[gnu::always_inline]] VecF At(int key, int d) const { return Load(vectors + key * stride + d); }
  [[gnu::always_inline]] void Prefetch(int, int) const {}
};
struct StoredHalves {
  const std::byte* const* rows;
  const std::byte* const* later;
  [[gnu::always_inline]] VecF At(int key, int d) const { return LoadHalf(rows[key] + 2 * d); }
  [[gnu::always_inline]] void Prefetch(int key, int d) const {
    if (d % 32 == 0) _mm_prefetch(later[key] + 2 * d, _MM_HINT_T0);
  }
};
struct StoredFloats {
  const std::byte* const* rows;
  const std::byte* const* later;
  [[gnu::always_inline]] VecF At(int key, int d) const {
    return Load(reinterpret_cast<const float*>(rows[key]) + d);
  }
  [[gnu::always_inline]] void Prefetch(int key, int d) const {
    _mm_prefetch(later[key] + 4 * d, _MM_HINT_T0);
  }
};

// acc[i][j]: the sixteen accumulators of q[i] . keys[first + j].
template <int kQueries, int kKeys, typename Source>
FACET_INLINE void Accumulate(const float* q, const Source& keys, int first, int dim, VecF* acc) {
  FACET_UNROLL
  for (int i = 0; i < kQueries * kKeys; ++i) acc[i] = Zero();
  for (int d = 0; d < dim; d += 16) {
    VecF x[kQueries];
    FACET_UNROLL
    for (int i = 0; i < kQueries; ++i) x[i] = Load(q + i * dim + d);
    FACET_UNROLL
    for (int j = 0; j < kKeys; ++j) {
      const VecF key = keys.At(first + j, d);
      FACET_UNROLL
      for (int i = 0; i < kQueries; ++i) {
        acc[i * kKeys + j] = Fma(x[i], key, acc[i * kKeys + j]);
      }
      keys.Prefetch(first + j, d);
    }
  }
}

// weights[i][j] = q[i] . keys[first + j] for six queries and eight keys, four at a time.
template <typename Source>
FACET_INLINE void DotsOfSix(const float* q, const Source& keys, int first, int dim,
                            float* weights) {
  VecF rest[16];  // of the last two queries: [2 first keys][query][4]
  alignas(64) float sums[16];
  FACET_UNROLL
  for (int round = 0; round < 2; ++round) {
    VecF acc[24];
    Accumulate<6, 4>(q, keys, first + 4 * round, dim, acc);
    VecF four[16];
    FACET_UNROLL
    for (int i = 0; i < 16; ++i) four[i] = acc[i];
    FACET_UNROLL
    for (int i = 0; i < 8; ++i) rest[8 * round + i] = acc[16 + i];
    Store(sums, Trees(four));
    FACET_UNROLL
    for (int i = 0; i < 4; ++i) {
      __builtin_memcpy(weights + i * kSplit + 4 * round, sums + 4 * i, 4 * sizeof(float));
    }
  }
  Store(sums, Trees(rest));
  FACET_UNROLL
  for (int i = 0; i < 4; ++i) {
    __builtin_memcpy(weights + (4 + i % 2) * kSplit + 4 * (i / 2), sums + 4 * i, 4 * sizeof(float));
  }
}

// weights[i][j] = q[i] . keys[first + j] for kQueries queries and KeysOf(kQueries) keys.
constexpr int KeysOf(int queries) { return queries == 6 ? 8 : 16 / queries; }
template <int kQueries, typename Source>
FACET_INLINE void Dots(const float* q, const Source& keys, int first, int dim, float* weights) {
  if constexpr (kQueries == 6) return DotsOfSix(q, keys, first, dim, weights);
  constexpr int kKeys = KeysOf(kQueries);
  VecF acc[16];
  Accumulate<kQueries, 16 / kQueries>(q, keys, first, dim, acc);
  alignas(64) float sums[16];
  Store(sums, Trees(acc));
  if constexpr (kQueries < 6) {
    FACET_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      __builtin_memcpy(weights + i * kSplit, sums + i * kKeys, kKeys * sizeof(float));
    }
  }
}

// The dot products of kQueries queries with the keys of a chunk that any of them sees, and then
// some to fill the vectors.
template <int kQueries, typename Source>
FACET_INLINE void ChunkDots(const SplitArgs& args, const Source& keys, int query, int chunk) {
  constexpr int kKeys = KeysOf(kQueries);
  int begin = kSplit;
  int end = 0;
  for (int i = query; i < query + kQueries; ++i) {
    begin = Smaller(begin, args.begin[i]);
    end = Larger(end, args.end[i]);
  }
  end = Smaller(end, chunk + kChunk);
  for (int key = Larger(begin / kKeys * kKeys, chunk); key < end; key += kKeys) {
    Dots<kQueries>(args.q + query * args.dim, keys, key, args.dim,
                   args.weights + query * kSplit + key);
  }
}

// Dot products -> exp(score - max), 0 for keys that are not seen; also max and sum.
FACET_INLINE void Soften(const SplitArgs& args, int query) {
  float* weights = args.weights + query * kSplit;
  const int begin = args.begin[query];
  const int end = args.end[query];
  VecF max = Set(-kInfinity);
  for (int i = begin / 16 * 16; i < end; i += 16) {
    VecF score = Mul(Load(weights + i), Set(args.scale));
    if (args.soft_cap != 0) score = SoftCapVector(score, args.soft_cap);
    if (i < begin) score = Select(FirstLanes(begin - i), Set(-kInfinity), score);
    if (end < i + 16) score = Select(FirstLanes(end - i), score, Set(-kInfinity));
    max = Max(max, score);
    Store(weights + i, score);
  }
  const float largest = MaxLane(max);
  VecF sums = Zero();
  for (int i = begin / 16 * 16; i < end; i += 16) {
    VecF p = Exp(Sub(Load(weights + i), Set(largest)));
    if (i < begin) p = Select(FirstLanes(begin - i), Zero(), p);
    if (end < i + 16) p = Select(FirstLanes(end - i), p, Zero());
    sums = Add(sums, p);
    Store(weights + i, p);
  }
  args.max[query] = largest;
  args.sum[query] = Tree(sums);
}

// out += weights x values over the keys [begin, end), or = if kFresh, for kQueries queries and
// 16 kVectors dimensions.
template <int kQueries, int kVectors, bool kFresh, typename Source>
FACET_INLINE void AddValues(const SplitArgs& args, const Source& values, int query, int d,
                            int begin, int end) {
  const float* weights = args.weights + query * kSplit;
  float* out = args.out + query * args.dim + d;
  VecF acc[kQueries][kVectors];
  FACET_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    FACET_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = kFresh ? Zero() : Load(out + i * args.dim + 16 * v);
    }
  }
  for (int key = begin; key < end; ++key) {
    VecF value[kVectors];
    FACET_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      value[v] = values.At(key, d + 16 * v);
      values.Prefetch(key, d + 16 * v);
    }
    FACET_UNROLL
    for (int i = 0; i < kQueries; ++i) {
      const VecF p = Set(weights[i * kSplit + key]);
      FACET_UNROLL
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(p, value[v], acc[i][v]);
    }
  }
  FACET_UNROLL
  for (int i = 0; i < kQueries; ++i) {
    FACET_UNROLL
    for (int v = 0; v < kVectors; ++v) Store(out + i * args.dim + 16 * v, acc[i][v]);
  }
}

// The values of a split for kQueries queries: what all of them see together, and before and after
// it what each sees alone, so that every sum ascends.
template <int kQueries, int kVectors, typename Source>
FACET_INLINE void GroupValues(const SplitArgs& args, const Source& values, int query, int d) {
  int begin = 0;
  int end = kSplit;
  int first = kSplit;
  for (int i = query; i < query + kQueries; ++i) {
    begin = Larger(begin, args.begin[i]);
    end = Smaller(end, args.end[i]);
    first = Smaller(first, args.begin[i]);
  }
  end = Larger(begin, end);
  if (first == begin) {
    AddValues<kQueries, kVectors, true>(args, values, query, d, begin, end);
  } else {
    for (int i = query; i < query + kQueries; ++i) {
      AddValues<1, kVectors, true>(args, values, i, d, args.begin[i], Smaller(begin, args.end[i]));
    }
    AddValues<kQueries, kVectors, false>(args, values, query, d, begin, end);
  }
  for (int i = query; i < query + kQueries; ++i) {
    if (end < args.end[i]) {
      AddValues<1, kVectors, false>(args, values, i, d, end, args.end[i]);
    }
  }
}

template <typename Source>
void ChunkDotsOfAll(const SplitArgs& args, const Source& keys, int chunk) {
  int query = 0;
  if constexpr (kManyRegisters) {
    for (; query + 6 <= args.queries; query += 6) ChunkDots<6>(args, keys, query, chunk);
  }
  for (; query + 4 <= args.queries; query += 4) ChunkDots<4>(args, keys, query, chunk);
  if (query + 2 <= args.queries) {
    ChunkDots<2>(args, keys, query, chunk);
    query += 2;
  }
  if (query < args.queries) ChunkDots<1>(args, keys, query, chunk);
}

// All queries visit 64 keys of 16 kVectors dimensions: as few as fit into the first-level cache.
template <int kVectors, typename Source>
void ValuesOfAll(const SplitArgs& args, const Source& values, int d) {
  int query = 0;
  if constexpr (kManyRegisters && kVectors <= 4) {
    for (; query + 6 <= args.queries; query += 6) GroupValues<6, kVectors>(args, values, query, d);
  }
  if constexpr (kVectors <= 4) {
    for (; query + 4 <= args.queries; query += 4) GroupValues<4, kVectors>(args, values, query, d);
  }
  for (; query + 2 <= args.queries; query += 2) GroupValues<2, kVectors>(args, values, query, d);
  if (query < args.queries) GroupValues<1, kVectors>(args, values, query, d);
}

template <typename Source>
FACET_INLINE void AttendTo(const SplitArgs& args, const Source& keys, const Source& values) {
  for (int chunk = 0; chunk < kSplit; chunk += kChunk) ChunkDotsOfAll(args, keys, chunk);
  for (int i = 0; i < args.queries; ++i) {
    if (args.begin[i] < args.end[i]) Soften(args, i);
  }
  int d = 0;
  if (args.queries < 4) {
    for (; d + 128 <= args.dim; d += 128) ValuesOfAll<8>(args, values, d);
  }
  for (; d + 64 <= args.dim; d += 64) ValuesOfAll<4>(args, values, d);
  for (; d < args.dim; d += 16) ValuesOfAll<1>(args, values, d);
}

void AttendSplit(const SplitArgs& args) {
  if (args.key_rows == nullptr) {
    AttendTo(args, Converted{args.keys, args.stride}, Converted{args.values, args.stride});
  } else if (args.half) {
    AttendTo(args, StoredHalves{args.key_rows, args.value_rows},
             StoredHalves{args.value_rows, args.next_key_rows});
  } else {
    AttendTo(args, StoredFloats{args.key_rows, args.value_rows},
             StoredFloats{args.value_rows, args.next_key_rows});
  }
}

void MergeVectors(const float* next, float a, float b, int dim, float* out) {
  for (int d = 0; d < dim; d += 16) {
    Store(out + d, Fma(Load(out + d), Set(a), Mul(Load(next + d), Set(b))));
  }
}

// Sixteen queries, or what is left of them: their factors are worked out side by side.
void MergeQueries(const SplitArgs& split, const Partials& total, int first) {
  const int count = Smaller(16, split.queries - first);
  const Mask lanes = FirstLanes(count);
  const VecF max = Load(total.max + first, lanes);
  const VecF next_max = Load(split.max + first, lanes);
  const VecF largest = Select(Less(max, next_max), next_max, max);
  const VecF a = Exp(Sub(max, largest));
  const VecF b = Exp(Sub(next_max, largest));
  const VecF next_sum = Load(split.sum + first, lanes);
  alignas(64) float maxima[16], sums[16], factors[16], next_factors[16];
  Store(maxima, largest);
  Store(sums, Fma(Load(total.sum + first, lanes), a, Mul(next_sum, b)));
  Store(factors, a);
  Store(next_factors, b);
  for (int i = 0; i < count; ++i) {
    const int query = first + i;
    if (split.begin[query] >= split.end[query]) continue;
    const float* next = split.out + query * split.dim;
    float* out = total.out + query * split.dim;
    if (total.sum[query] == 0) {
      total.max[query] = split.max[query];
      total.sum[query] = split.sum[query];
      for (int d = 0; d < split.dim; d += 16) Store(out + d, Load(next + d));
    } else {
      total.max[query] = maxima[i];
      total.sum[query] = sums[i];
      MergeVectors(next, factors[i], next_factors[i], split.dim, out);
    }
  }
}

void MergeSplit(const SplitArgs& split, const Partials& total) {
  for (int first = 0; first < split.queries; first += 16) MergeQueries(split, total, first);
}

void FinishQuery(const float* total, float sum, int size, float* out) {
  const VecF inverse = Set(1.0f / sum);
  int d = 0;
  for (; d + 16 <= size; d += 16) Store(out + d, Mul(Load(total + d), inverse));
  if (d < size) {
    const Mask m = FirstLanes(size - d);
    Store(out + d, Mul(Load(total + d, m), inverse), m);
  }
}

}  // namespace

void AddAttentionKernels(KernelTable* table) {
  table->attend_split = &AttendSplit;
  table->merge_split = &MergeSplit;
  table->finish_query = &FinishQuery;
}

}  // namespace FACET_ISA
}  // namespace facet
