#include "kernels/cuda/block_reader.cuh"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/kernels.h"

// Products over quantised activations. A warp computes 16 rows of the matrix for 8 * kTiles rows
// of activations over one leaf: per block of 32 columns one exact integer product on tensor cores,
// then the canonical fused multiply-adds, in ascending K, in the one lane that owns the element.
// Rows that only pad a tile repeat the last one and are not stored.

namespace facet::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTileRows = 16;     // of the matrix, what one mma takes
constexpr int kTileColumns = 8;   // rows of activations that one mma takes
constexpr int kWideTiles = 4;     // tiles of a warp when there are enough rows

__global__ void QuantizeKernel(const float* x, int64_t blocks, QuantizedActivations out) {
  const int lane = ThreadIndex().x % kWarpSize;
  const int64_t block = int64_t{BlockIndex().x} * kWarps + ThreadIndex().x / kWarpSize;
  if (block >= blocks) return;
  const float value = x[block * 32 + lane];
  // The largest magnitude as an integer, so that a NaN counts as larger than everything.
  uint32_t largest = FloatBits(value) & 0x7fffffffu;
  for (int mask = 16; mask > 0; mask /= 2) {
    const uint32_t other = ShuffleXor(largest, mask);
    largest = other > largest ? other : largest;
  }
  const float amax = BitsFloat(largest);
  const float inverse = DivRn(127.0f, amax);
  const bool usable = inverse > 0 && inverse < BitsFloat(0x7f800000u);
  const int32_t q = usable ? ToIntRn(MulRn(value, inverse)) : 0;
  int32_t sum = q;
  for (int mask = 16; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  out.q[block * 32 + lane] = static_cast<int8_t>(q);
  if (lane == 0) {
    const float scale = DivRn(amax, 127.0f);
    out.scales[block] = scale;
    out.scaled_sums[block] = MulRn(scale, static_cast<float>(sum));
  }
}

// The two rows of activations whose results a lane keeps, per tile.
struct Columns {
  const float* scales[2];
  const float* scaled_sums[2];
  const int8_t* q;  // of the row that the lane feeds to the tensor core
};

// acc += scale * (the product of 16 or 32 columns), for both rows of the matrix.
__device__ __forceinline__ void AddProduct(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                           const float (&row_scales)[2], const float (&xs)[2],
                                           float (&acc)[4]) {
  int32_t dot[4] = {0, 0, 0, 0};
  MmaS8(dot, a, b);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    acc[i] = FmaRn(static_cast<float>(dot[i]), MulRn(row_scales[i / 2], xs[i % 2]), acc[i]);
  }
}

template <typename Reader>
__device__ __forceinline__ void AddBlock(const BlockShare (&rows)[2], const Columns& columns,
                                         int block, int t, float (&acc)[4]) {
  const uint32_t a[4] = {rows[0].low, rows[1].low, rows[0].high, rows[1].high};
  const int8_t* q = columns.q + int64_t{block} * 32 + 4 * t;
  const uint32_t b[2] = {LoadVector<uint32_t>(q), LoadVector<uint32_t>(q + 16)};
  const float xs[2] = {columns.scales[0][block], columns.scales[1][block]};
  const float scales[2] = {rows[0].scale, rows[1].scale};
  if (Reader::kHalves) {
    const uint32_t b_low[2] = {b[0], 0};
    const uint32_t b_high[2] = {0, b[1]};
    const float scales_high[2] = {rows[0].scale_high, rows[1].scale_high};
    AddProduct(a, b_low, scales, xs, acc);
    AddProduct(a, b_high, scales_high, xs, acc);
    return;
  }
  AddProduct(a, b, scales, xs, acc);
  if (Reader::kHasMin) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      acc[i] = FmaRn(rows[i / 2].min, columns.scaled_sums[i % 2][block], acc[i]);
    }
  }
}

// Where a lane stands in its warp's tile of the result.
struct Place {
  int group;      // lane / 4
  int t;          // lane % 4
  int first_row;  // of the matrix
  int first_x;    // row of activations
};

template <int kTiles>
__device__ __forceinline__ void FindColumns(const LeafProducts& args, const Place& place,
                                            Columns (&columns)[kTiles]) {
  const int64_t blocks = args.columns / 32;
  const int last = args.x_rows - 1;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int first = place.first_x + tile * kTileColumns;
    const int64_t fed = first + place.group < last ? first + place.group : last;
    columns[tile].q = args.quantized.q + fed * args.columns;
    for (int i = 0; i < 2; ++i) {
      const int kept = first + 2 * place.t + i;
      const int64_t row = kept < last ? kept : last;
      columns[tile].scales[i] = args.quantized.scales + row * blocks;
      columns[tile].scaled_sums[i] = args.quantized.scaled_sums + row * blocks;
    }
  }
}

template <typename Reader, int kTiles>
__device__ __forceinline__ void SumLeaf(const LeafProducts& args, const uint8_t* weights,
                                        const Place& place, const Columns (&columns)[kTiles],
                                        float (&acc)[kTiles][4]) {
  const int last = args.rows - 1;
  const int rows[2] = {place.first_row + place.group, place.first_row + place.group + 8};
  const uint8_t* row[2];
  for (int i = 0; i < 2; ++i) row[i] = weights + (rows[i] < last ? rows[i] : last) * args.row_bytes;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    for (int i = 0; i < 4; ++i) acc[tile][i] = 0;
  }
  const int leaf = BlockIndex().y;
  const int end = args.leaf_starts[leaf + 1] / 32;
  for (int block = args.leaf_starts[leaf] / 32; block < end; ++block) {
    const BlockShare shares[2] = {Reader::Read(row[0], block, place.t),
                                  Reader::Read(row[1], block, place.t)};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      AddBlock<Reader>(shares, columns[tile], block, place.t, acc[tile]);
    }
  }
}

template <typename Reader, int kTiles>
__global__ void IntegerProductKernel(LeafProducts args) {
  const int lane = ThreadIndex().x % kWarpSize;
  const int warp = BlockIndex().x * kWarps + ThreadIndex().x / kWarpSize;
  const Place place = {lane / 4, lane % 4, warp * kTileRows,
                       static_cast<int>(BlockIndex().z) * kTiles * kTileColumns};
  if (place.first_row >= args.rows) return;  // the whole warp
  Columns columns[kTiles];
  FindColumns<kTiles>(args, place, columns);
  float acc[kTiles][4];
  SumLeaf<Reader, kTiles>(args, args.weights, place, columns, acc);
  if (args.gate != Gate::kNone) {
    float up[kTiles][4];
    SumLeaf<Reader, kTiles>(args, args.up, place, columns, up);
    for (int tile = 0; tile < kTiles; ++tile) {
      for (int i = 0; i < 4; ++i) acc[tile][i] = Gated(args.gate, acc[tile][i], up[tile][i]);
    }
  }
  float* out = args.out + BlockIndex().y * args.leaf_stride;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = place.first_row + place.group + i / 2 * 8;
      const int x_row = place.first_x + tile * kTileColumns + 2 * place.t + i % 2;
      if (row < args.rows && x_row < args.x_rows) out[x_row * args.out_stride + row] = acc[tile][i];
    }
  }
}

template <typename Reader, int kTiles>
int LaunchTiles(Stream stream, const LeafProducts& args) {
  const int rows = kWarps * kTileRows;
  const int x_rows = kTiles * kTileColumns;
  const LaunchShape shape{{static_cast<unsigned>((args.rows + rows - 1) / rows),
                           static_cast<unsigned>(args.leaves),
                           static_cast<unsigned>((args.x_rows + x_rows - 1) / x_rows)},
                          {kWarps * kWarpSize},
                          0};
  return Launch(stream, shape, IntegerProductKernel<Reader, kTiles>, args);
}

template <typename Reader>
int LaunchProducts(Stream stream, const LeafProducts& args) {
  if (args.x_rows <= kTileColumns) return LaunchTiles<Reader, 1>(stream, args);
  return LaunchTiles<Reader, kWideTiles>(stream, args);
}

// Level l of a sum tree's left edge holds the sum of 2^l leaves that wait for as many to their
// right, as the bits of a counter of leaves do; at the end the levels are added from the right.
constexpr int kLevels = 8;
static_assert((1 << kLevels) > kRootLeavesMax);

__global__ void SumLeavesKernel(const float* leaves, int64_t leaf_stride, const int32_t* root_begin,
                                int64_t elements, int64_t root_stride, float* out) {
  const int64_t element = int64_t{BlockIndex().x} * (kWarps * kWarpSize) + ThreadIndex().x;
  if (element >= elements) return;
  const int root = BlockIndex().y;
  const int begin = root_begin[root];
  const int count = root_begin[root + 1] - begin;
  float waiting[kLevels];
  for (int i = 0; i < count; ++i) {
    float sum = leaves[(begin + i) * leaf_stride + element];
    bool carries = true;
#pragma unroll
    for (int level = 0; level < kLevels; ++level) {
      if (!carries) continue;
      if ((i >> level) & 1) {
        sum = AddRn(waiting[level], sum);
      } else {
        waiting[level] = sum;
        carries = false;
      }
    }
  }
  float total = 0;
  bool first = true;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    if (((count >> level) & 1) == 0) continue;
    total = first ? waiting[level] : AddRn(waiting[level], total);
    first = false;
  }
  out[root * root_stride + element] = total;
}

}  // namespace

int QuantizeRows(Stream stream, const float* x, int rows, int64_t columns,
                 const QuantizedActivations& out) {
  const int64_t blocks = rows * (columns / 32);
  if (blocks == 0) return 0;
  const LaunchShape shape{
      {static_cast<unsigned>((blocks + kWarps - 1) / kWarps)}, {kWarps * kWarpSize}, 0};
  return Launch(stream, shape, QuantizeKernel, x, blocks, out);
}

int IntegerProducts(Stream stream, const LeafProducts& args) {
  if (args.rows == 0 || args.x_rows == 0) return 0;
  switch (args.type) {
    case TensorType::kQ4_0:
      return LaunchProducts<ReadQ4_0>(stream, args);
    case TensorType::kQ4_1:
      return LaunchProducts<ReadQ4_1>(stream, args);
    case TensorType::kQ5_0:
      return LaunchProducts<ReadQ5_0>(stream, args);
    case TensorType::kQ5_1:
      return LaunchProducts<ReadQ5_1>(stream, args);
    case TensorType::kQ4_K:
      return LaunchProducts<ReadQ4_K>(stream, args);
    case TensorType::kQ5_K:
      return LaunchProducts<ReadQ5_K>(stream, args);
    case TensorType::kQ6_K:
      return LaunchProducts<ReadQ6_K>(stream, args);
    default:
      return LaunchProducts<ReadQ8_0>(stream, args);
  }
}

int SumLeaves(Stream stream, const float* leaves, int64_t leaf_stride, const int32_t* root_begin,
              int roots, int64_t elements, int64_t root_stride, float* out) {
  if (elements == 0 || roots == 0) return 0;
  const int threads = kWarps * kWarpSize;
  const LaunchShape shape{{static_cast<unsigned>((elements + threads - 1) / threads),
                           static_cast<unsigned>(roots)},
                          {static_cast<unsigned>(threads)},
                          0};
  return Launch(stream, shape, SumLeavesKernel, leaves, leaf_stride, root_begin, elements,
                root_stride, out);
}

}  // namespace facet::cuda
