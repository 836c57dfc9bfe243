#include "kernels/cuda/kernels.h"
#include "kernels/cuda/math.cuh"

// What is asked about rows of logits. The best candidates are found by sorting chunks of kChunk
// keys, each chunk keeping its best `count`, until one chunk is left: exact, and without a draw or
// a comparison that depends on how the work is cut.

namespace facet::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 1024;
static_assert(2 * kTopMax <= kChunk);

__device__ __forceinline__ float Infinity() { return BitsFloat(0x7f800000u); }

__global__ void ScaleKernel(LogitRows rows) {
  const int64_t i = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (i >= rows.size) return;
  const int64_t at = BlockIndex().y * rows.size + i;
  rows.processed[at] = MulRn(rows.logits[at], rows.queries[BlockIndex().y].inverse_temperature);
}

__global__ void EditKernel(LogitRows rows) {
  const QueryOnDevice query = rows.queries[BlockIndex().y];
  const int i = query.edits_begin + static_cast<int>(BlockIndex().x) * kThreads +
                static_cast<int>(ThreadIndex().x);
  if (i >= query.edits_end) return;
  const EditOnDevice edit = rows.edits[i];
  const int64_t at = BlockIndex().y * rows.size + edit.row;
  const float biased = AddRn(rows.logits[at], edit.bias);
  const float repeated =
      biased > 0 ? DivRn(biased, edit.repetition) : MulRn(biased, edit.repetition);
  rows.processed[at] = MulRn(SubRn(repeated, edit.subtract), query.inverse_temperature);
}

// The block's largest value, or smallest flag as 0 and 1; every thread gets it.
__device__ __forceinline__ float LargestOfBlock(float value) {
  FACET_SHARED(float, of_warp, kThreads / kWarpSize);
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    const float other = ShuffleXor(value, mask);
    value = value < other ? other : value;
  }
  const int warp = ThreadIndex().x / kWarpSize;
  Barrier();  // what the call before left has been read
  if (ThreadIndex().x % kWarpSize == 0) of_warp[warp] = value;
  Barrier();
  float largest = of_warp[0];
  for (int i = 1; i < kThreads / kWarpSize; ++i) {
    const float other = of_warp[i];
    largest = largest < other ? other : largest;
  }
  return largest;
}

// The canonical sum of exp(logit - max) over a slice; the first warp calls it.
__device__ __forceinline__ float SumOfSlice(const float* logits, int size, float max) {
  if (max == -Infinity()) return 0;  // an empty slice, or a wholly banned one
  const int lane = ThreadIndex().x;
  float a = 0;
  if (lane < 16) {
    for (int i = lane; i < size; i += 16) a = AddRn(a, Exp(SubRn(logits[i], max)));
  }
  return TreeOfLanes(a);
}

// One slice of one row per block.
__global__ void SumSlicesKernel(LogitRows rows, const int32_t* starts, int slices,
                                SliceOnDevice* out) {
  const int slice = BlockIndex().x;
  const int64_t row = BlockIndex().y;
  const int begin = starts[slice];
  const int size = starts[slice + 1] - begin;
  const float* raw = rows.logits + row * rows.size + begin;
  const float* processed = rows.processed + row * rows.size + begin;
  float max = -Infinity(), raw_max = -Infinity(), bad = 0;
  for (int i = ThreadIndex().x; i < size; i += kThreads) {
    max = max < processed[i] ? processed[i] : max;
    raw_max = raw_max < raw[i] ? raw[i] : raw_max;
    if (!(processed[i] < Infinity()) || !(raw[i] < Infinity())) bad = 1;
  }
  max = LargestOfBlock(max);
  raw_max = LargestOfBlock(raw_max);
  bad = LargestOfBlock(bad);
  if (ThreadIndex().x >= kWarpSize) return;
  const QueryOnDevice query = rows.queries[row];
  SliceOnDevice result = {max, 0, raw_max, 0, bad == 0};
  if (query.sums != 0) result.sum = SumOfSlice(processed, size, max);
  if (query.raw_sums != 0) result.raw_sum = SumOfSlice(raw, size, raw_max);
  if (ThreadIndex().x == 0) out[row * slices + slice] = result;
}

// As kernels/best_key.h has it: a larger key comes first, and no candidate's is 0 or kNotFiniteKey.
constexpr uint64_t kNotFiniteKey = ~uint64_t{0};
__device__ __forceinline__ uint64_t KeyOf(float value, int32_t id) {
  uint32_t bits = FloatBits(AddRn(value, 0.0f));  // -0 counts as 0
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}
__device__ __forceinline__ int32_t IdOf(uint64_t key) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(key));
}

// What candidate `i` of a row is ordered by.
__device__ __forceinline__ float OrderOf(const LogitRows& rows, int64_t row, bool raw, int64_t i) {
  if (raw) return rows.logits[row * rows.size + i];
  const QueryOnDevice query = rows.queries[row];
  const float processed = rows.processed[row * rows.size + i];
  if (query.gumbel == 0) return processed;
  return AddRn(processed, Gumbel(query.key, static_cast<uint32_t>(rows.first_id + i)));
}

// Sorts the block's chunk, descending (bitonic; Batcher 1968).
__device__ __forceinline__ void SortChunk(Shared<uint64_t> keys) {
  for (int run = 2; run <= kChunk; run *= 2) {
    for (int distance = run / 2; distance > 0; distance /= 2) {
      Barrier();
      for (int pair = ThreadIndex().x; pair < kChunk / 2; pair += kThreads) {
        const int low = pair / distance * 2 * distance + pair % distance;
        const uint64_t a = keys[low];
        const uint64_t b = keys[low + distance];
        const bool descending = (low & run) == 0;
        if ((a < b) == descending) {
          keys[low] = b;
          keys[low + distance] = a;
        }
      }
    }
  }
  Barrier();
}

// to: [rows, chunks, count], 0 where there are fewer.
__device__ __forceinline__ void StoreBest(Shared<uint64_t> keys, int count, uint64_t* to) {
  SortChunk(keys);
  uint64_t* out = to + (int64_t{BlockIndex().y} * GridSize().x + BlockIndex().x) * count;
  for (int i = ThreadIndex().x; i < count; i += kThreads) out[i] = keys[i];
}

__global__ void FirstKeysKernel(LogitRows rows, bool raw, int count, uint64_t* to) {
  FACET_SHARED(uint64_t, keys, kChunk);
  for (int i = ThreadIndex().x; i < kChunk; i += kThreads) {
    const int64_t at = int64_t{BlockIndex().x} * kChunk + i;
    keys[i] = at < rows.size ? KeyOf(OrderOf(rows, BlockIndex().y, raw, at),
                                     rows.first_id + static_cast<int32_t>(at))
                             : 0;
  }
  StoreBest(keys, count, to);
}

// from: [rows, size].
__global__ void MoreKeysKernel(const uint64_t* from, int64_t size, int count, uint64_t* to) {
  FACET_SHARED(uint64_t, keys, kChunk);
  for (int i = ThreadIndex().x; i < kChunk; i += kThreads) {
    const int64_t at = int64_t{BlockIndex().x} * kChunk + i;
    keys[i] = at < size ? from[BlockIndex().y * size + at] : 0;
  }
  StoreBest(keys, count, to);
}

// keys, out: [rows, count].
__global__ void CandidatesKernel(LogitRows rows, bool raw, int count, const uint64_t* keys,
                                 CandidateOnDevice* out) {
  const int i = static_cast<int>(BlockIndex().x) * kThreads + static_cast<int>(ThreadIndex().x);
  if (i >= count) return;
  const int64_t row = BlockIndex().y;
  const int32_t id = IdOf(keys[row * count + i]);
  const int64_t at = id - rows.first_id;
  out[row * count + i] = {OrderOf(rows, row, raw, at), rows.processed[row * rows.size + at],
                          rows.logits[row * rows.size + at], id};
}

// keys: [rows]. A thread per row.
__global__ void BestKernel(const SliceOnDevice* sums, int rows, int slices, const uint64_t* keys,
                           uint64_t* best) {
  const int64_t row = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (row >= rows) return;
  bool finite = true;
  for (int i = 0; i < slices; ++i) finite &= sums[row * slices + i].finite != 0;
  best[row] = finite ? keys[row] : kNotFiniteKey;
}

// A thread per row.
__global__ void KeepKernel(KeysOfRanks args) {
  const int64_t row = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (row >= args.rows) return;
  uint64_t best = 0;
  for (int rank = 0; rank < args.ranks; ++rank) {
    const uint64_t key = args.all[int64_t{rank} * args.rows + row];
    best = best < key ? key : best;
  }
  args.winners[row] = best;
  const int32_t place = args.places[row];
  if (place >= 0) args.kept[place] = best == 0 ? 0 : IdOf(best);
}

unsigned Parts(int64_t size, int part) { return static_cast<unsigned>((size + part - 1) / part); }

// The keys of the best `count` of every row, in one of the two lists.
int SortKeys(Stream stream, const LogitRows& rows, bool raw, int count, uint64_t* lists,
             const uint64_t** keys) {
  const unsigned y = static_cast<unsigned>(rows.rows);
  uint64_t* from = lists;
  uint64_t* to = lists + rows.rows * TopKeys(rows.size, count);
  unsigned chunks = Parts(rows.size, kChunk);
  int code = Launch(stream, LaunchShape{{chunks, y}, {kThreads}, 0}, FirstKeysKernel, rows, raw,
                    count, from);
  while (code == 0 && chunks > 1) {
    const int64_t size = int64_t{chunks} * count;
    chunks = Parts(size, kChunk);
    code = Launch(stream, LaunchShape{{chunks, y}, {kThreads}, 0}, MoreKeysKernel, from, size,
                  count, to);
    uint64_t* const swapped = from;
    from = to;
    to = swapped;
  }
  *keys = from;
  return code;
}

}  // namespace

int ProcessLogits(Stream stream, const LogitRows& rows) {
  if (rows.rows == 0 || rows.size == 0) return 0;
  const unsigned count = static_cast<unsigned>(rows.rows);
  const LaunchShape all{{Parts(rows.size, kThreads), count}, {kThreads}, 0};
  const int code = Launch(stream, all, ScaleKernel, rows);
  if (code != 0 || rows.edits_max == 0) return code;
  const LaunchShape edits{{Parts(rows.edits_max, kThreads), count}, {kThreads}, 0};
  return Launch(stream, edits, EditKernel, rows);
}

int SumSlices(Stream stream, const LogitRows& rows, const int32_t* starts, int slices,
              SliceOnDevice* out) {
  if (rows.rows == 0 || slices == 0) return 0;
  const LaunchShape shape{{static_cast<unsigned>(slices), static_cast<unsigned>(rows.rows)},
                          {kThreads},
                          0};
  return Launch(stream, shape, SumSlicesKernel, rows, starts, slices, out);
}

int64_t TopKeys(int64_t size, int count) { return int64_t{Parts(size, kChunk)} * count; }

int SelectTop(Stream stream, const LogitRows& rows, bool raw, int count, uint64_t* lists,
              CandidateOnDevice* out) {
  const uint64_t* keys = nullptr;
  const int code = SortKeys(stream, rows, raw, count, lists, &keys);
  if (code != 0) return code;
  const LaunchShape shape{{Parts(count, kThreads), static_cast<unsigned>(rows.rows)}, {kThreads}, 0};
  return Launch(stream, shape, CandidatesKernel, rows, raw, count, keys, out);
}

int SelectBest(Stream stream, const LogitRows& rows, const SliceOnDevice* sums, int slices,
               uint64_t* lists, uint64_t* best) {
  const uint64_t* keys = nullptr;
  const int code = SortKeys(stream, rows, false, 1, lists, &keys);
  if (code != 0) return code;
  const LaunchShape shape{{Parts(rows.rows, kThreads)}, {kThreads}, 0};
  return Launch(stream, shape, BestKernel, sums, rows.rows, slices, keys, best);
}

int KeepBest(Stream stream, const KeysOfRanks& args) {
  if (args.rows == 0) return 0;
  const LaunchShape shape{{Parts(args.rows, kThreads)}, {kThreads}, 0};
  return Launch(stream, shape, KeepKernel, args);
}

}  // namespace facet::cuda
