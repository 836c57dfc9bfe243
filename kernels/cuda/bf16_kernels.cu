#include "kernels/cuda/block_reader.cuh"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/kernels.h"

// What stands before and behind a library's product: weights and activations rounded to bf16, with
// the zeros that it takes to fill a row and a batch up, and its results brought to their places.

namespace facet::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kUnit = 8;  // columns that a thread rounds: 16 bytes

// To nearest, ties to even; a NaN stays one.
__device__ __forceinline__ uint32_t Bf16Of(float a) {
  const uint32_t bits = FloatBits(a);
  return (bits & 0x7fffffffu) > 0x7f800000u ? bits >> 16 | 0x40u : FloatToBf16(a);
}
__device__ __forceinline__ uint32_t PairOf(float a, float b) { return Bf16Of(a) | Bf16Of(b) << 16; }

// Four lanes to a block of 32 columns, each the columns of its BlockShare.
template <typename Reader>
__global__ void DequantizeKernel(Bf16Rows args) {
  const int64_t blocks = args.columns / 32;
  const int64_t thread = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  const int64_t row = thread / (4 * blocks);
  if (row >= args.rows) return;
  const int64_t of_row = thread % (4 * blocks);
  const int t = static_cast<int>(of_row % 4);
  const int64_t block = of_row / 4;
  const BlockShare share = Reader::Read(args.from + row * args.row_bytes,
                                        static_cast<int>(args.begin / 32 + block), t);
  float w[kUnit];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    w[i] = MulRn(share.scale, SignedByte(share.low, i));
    w[4 + i] = MulRn(Reader::kHalves ? share.scale_high : share.scale, SignedByte(share.high, i));
  }
  if (Reader::kHasMin) {
#pragma unroll
    for (int i = 0; i < kUnit; ++i) w[i] = AddRn(w[i], share.min);
  }
  uint16_t* out = args.out + row * args.stride + block * 32 + 4 * t;
  StoreVector(out, U32x2{PairOf(w[0], w[1]), PairOf(w[2], w[3])});
  StoreVector(out + 16, U32x2{PairOf(w[4], w[5]), PairOf(w[6], w[7])});
}

struct F32Element {
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return reinterpret_cast<const float*>(row)[k];
  }
};
struct F16Element {
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return LoadHalf(row + 2 * k);
  }
};
struct Bf16Element {
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return Bf16ToFloat(Load16(row + 2 * k));
  }
};

// Eight columns to a thread; zeros from `columns` to `stride` and from `rows` to `out_rows`.
template <typename Element>
__global__ void RoundKernel(Bf16Rows args) {
  const int64_t units = args.stride / kUnit;
  const int64_t thread = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  const int64_t row = thread / units;
  if (row >= args.out_rows) return;
  const int64_t first = thread % units * kUnit;
  float w[kUnit];
#pragma unroll
  for (int i = 0; i < kUnit; ++i) {
    const bool there = row < args.rows && first + i < args.columns;
    w[i] = there ? Element::Load(args.from + row * args.row_bytes, args.begin + first + i) : 0.0f;
  }
  const U32x4 rounded = {PairOf(w[0], w[1]), PairOf(w[2], w[3]), PairOf(w[4], w[5]),
                         PairOf(w[6], w[7])};
  StoreVector(args.out + row * args.stride + first, rounded);
}

__global__ void StoreKernel(StoredProducts args) {
  const int64_t thread = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  const int64_t row = thread / args.width;
  if (row >= args.rows) return;
  const int64_t column = thread % args.width;
  const int64_t from = row * args.stride + column;
  const float value = args.values[from];
  args.out[row * args.out_stride + column] =
      args.gate == Gate::kNone ? value : Gated(args.gate, value, args.up[from]);
}

LaunchShape ShapeOf(int64_t threads) {
  return {{static_cast<unsigned>((threads + kThreads - 1) / kThreads)}, {kThreads}, 0};
}

template <typename Reader>
int LaunchDequantize(Stream stream, const Bf16Rows& args) {
  return Launch(stream, ShapeOf(args.rows * (args.columns / 32) * 4), DequantizeKernel<Reader>,
                args);
}

template <typename Element>
int LaunchRound(Stream stream, const Bf16Rows& args) {
  return Launch(stream, ShapeOf(args.out_rows * (args.stride / kUnit)), RoundKernel<Element>, args);
}

}  // namespace

int RoundToBf16(Stream stream, const Bf16Rows& args) {
  if (args.out_rows == 0) return 0;
  switch (args.type) {
    case TensorType::kF16:
      return LaunchRound<F16Element>(stream, args);
    case TensorType::kBF16:
      return LaunchRound<Bf16Element>(stream, args);
    case TensorType::kF32:
      return LaunchRound<F32Element>(stream, args);
    case TensorType::kQ4_0:
      return LaunchDequantize<ReadQ4_0>(stream, args);
    case TensorType::kQ4_1:
      return LaunchDequantize<ReadQ4_1>(stream, args);
    case TensorType::kQ5_0:
      return LaunchDequantize<ReadQ5_0>(stream, args);
    case TensorType::kQ5_1:
      return LaunchDequantize<ReadQ5_1>(stream, args);
    case TensorType::kQ4_K:
      return LaunchDequantize<ReadQ4_K>(stream, args);
    case TensorType::kQ5_K:
      return LaunchDequantize<ReadQ5_K>(stream, args);
    case TensorType::kQ6_K:
      return LaunchDequantize<ReadQ6_K>(stream, args);
    default:
      return LaunchDequantize<ReadQ8_0>(stream, args);
  }
}

int StoreProducts(Stream stream, const StoredProducts& args) {
  if (args.rows == 0 || args.width == 0) return 0;
  return Launch(stream, ShapeOf(int64_t{args.rows} * args.width), StoreKernel, args);
}

}  // namespace facet::cuda
