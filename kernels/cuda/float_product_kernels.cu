#include "kernels/cuda/block_reader.cuh"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/math.cuh"

// Products over float activations: one thread owns an element of the result and adds in ascending
// K, or of bfloat16 pair by pair. A block computes 32 rows of the matrix, one per lane, for 4 * kRows rows of activations, and
// stages both through shared memory, 32 columns at a time.

namespace facet::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kChunk = 32;
constexpr int kPitch = kChunk + 1;  // lanes read a column of the weights from 32 banks
constexpr int kWideRows = 8;        // rows of activations per thread when there are enough

struct F32Element {
  static constexpr bool kPairs = false;
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return reinterpret_cast<const float*>(row)[k];
  }
};
struct F16Element {
  static constexpr bool kPairs = false;
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return LoadHalf(row + 2 * k);
  }
};
struct Bf16Element {
  static constexpr bool kPairs = true;
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return Bf16ToFloat(Load16(row + 2 * k));
  }
};

struct Tiles {
  Shared<float> weights;  // [32 rows, kPitch]
  Shared<float> x;        // [4 * kRows rows, kChunk]
};

// Rows beyond the last repeat it; their results are not stored. Columns beyond `end` are not read.
template <typename Element, int kRows>
__device__ __forceinline__ void Stage(const LeafProducts& args, const uint8_t* weights, int64_t k,
                                      int64_t end, const Tiles& tiles) {
  const int lane = ThreadIndex().x % kWarpSize;
  const int warp = ThreadIndex().x / kWarpSize;
  if (k + lane >= end) return;
  const int first_row = BlockIndex().x * kWarpSize;
  for (int row = warp; row < kWarpSize; row += kWarps) {
    const int64_t from = first_row + row < args.rows ? first_row + row : args.rows - 1;
    tiles.weights[row * kPitch + lane] = Element::Load(weights + from * args.row_bytes, k + lane);
  }
  const int first_x = BlockIndex().z * kWarps * kRows;
  for (int row = warp; row < kWarps * kRows; row += kWarps) {
    const int64_t from = first_x + row < args.x_rows ? first_x + row : args.x_rows - 1;
    const float x = args.x[from * args.columns + k + lane];
    tiles.x[row * kChunk + lane] = Element::kPairs ? RoundToBf16(x) : x;
  }
}

template <int kRows>
__device__ __forceinline__ void AddColumns(const Tiles& tiles, int columns, float (&acc)[kRows]) {
  const int lane = ThreadIndex().x % kWarpSize;
  const int warp = ThreadIndex().x / kWarpSize;
  for (int i = 0; i < columns; ++i) {
    const float w = tiles.weights[lane * kPitch + i];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      acc[r] = FmaRn(w, tiles.x[(warp * kRows + r) * kChunk + i], acc[r]);
    }
  }
}

// The second column of a pair is added first; a missing one counts as zero.
template <int kRows>
__device__ __forceinline__ void AddPairs(const Tiles& tiles, int columns, float (&acc)[kRows]) {
  const int lane = ThreadIndex().x % kWarpSize;
  const int warp = ThreadIndex().x / kWarpSize;
  for (int i = 0; i < columns; i += 2) {
    const bool both = i + 1 < columns;
    const float first = tiles.weights[lane * kPitch + i];
    const float second = both ? tiles.weights[lane * kPitch + i + 1] : 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int at = (warp * kRows + r) * kChunk + i;
      acc[r] = FmaFlushed(second, both ? tiles.x[at + 1] : 0.0f, acc[r]);
      acc[r] = FmaFlushed(first, tiles.x[at], acc[r]);
    }
  }
}

template <typename Element, int kRows>
__device__ __forceinline__ void SumLeaf(const LeafProducts& args, const uint8_t* weights,
                                        const Tiles& tiles, float (&acc)[kRows]) {
  for (int r = 0; r < kRows; ++r) acc[r] = 0;
  const int leaf = BlockIndex().y;
  const int64_t end = args.leaf_starts[leaf + 1];
  for (int64_t k = args.leaf_starts[leaf]; k < end; k += kChunk) {
    Barrier();  // the tiles of the last round have been read
    Stage<Element, kRows>(args, weights, k, end, tiles);
    Barrier();
    const int columns = end - k < kChunk ? static_cast<int>(end - k) : kChunk;
    if (Element::kPairs) {
      AddPairs(tiles, columns, acc);
    } else {
      AddColumns(tiles, columns, acc);
    }
  }
}

template <typename Element, int kRows>
__global__ void FloatProductKernel(LeafProducts args) {
  FACET_SHARED(float, weights, kWarpSize * kPitch);
  FACET_SHARED(float, x, kWarps * kRows * kChunk);
  const Tiles tiles = {weights, x};
  float acc[kRows];
  SumLeaf<Element, kRows>(args, args.weights, tiles, acc);
  if (args.gate != Gate::kNone) {
    float up[kRows];
    SumLeaf<Element, kRows>(args, args.up, tiles, up);
    for (int r = 0; r < kRows; ++r) acc[r] = Gated(args.gate, acc[r], up[r]);
  }
  const int row = BlockIndex().x * kWarpSize + ThreadIndex().x % kWarpSize;
  const int first_x = (BlockIndex().z * kWarps + ThreadIndex().x / kWarpSize) * kRows;
  float* out = args.out + BlockIndex().y * args.leaf_stride;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (row < args.rows && first_x + r < args.x_rows) {
      out[(first_x + r) * args.out_stride + row] = acc[r];
    }
  }
}

template <typename Element, int kRows>
int LaunchRows(Stream stream, const LeafProducts& args) {
  const int x_rows = kWarps * kRows;
  const LaunchShape shape{{static_cast<unsigned>((args.rows + kWarpSize - 1) / kWarpSize),
                           static_cast<unsigned>(args.leaves),
                           static_cast<unsigned>((args.x_rows + x_rows - 1) / x_rows)},
                          {kWarps * kWarpSize},
                          0};
  return Launch(stream, shape, FloatProductKernel<Element, kRows>, args);
}

template <typename Element>
int LaunchProducts(Stream stream, const LeafProducts& args) {
  if (args.x_rows <= kWarps) return LaunchRows<Element, 1>(stream, args);
  return LaunchRows<Element, kWideRows>(stream, args);
}

}  // namespace

int FloatProducts(Stream stream, const LeafProducts& args) {
  if (args.rows == 0 || args.x_rows == 0) return 0;
  switch (args.type) {
    case TensorType::kF16:
      return LaunchProducts<F16Element>(stream, args);
    case TensorType::kBF16:
      return LaunchProducts<Bf16Element>(stream, args);
    default:
      return LaunchProducts<F32Element>(stream, args);
  }
}

}  // namespace facet::cuda
