#include "kernels/cuda/block_reader.cuh"
#include "kernels/cuda/gate.cuh"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/math.cuh"

// Products of a few rows of activations, bound by the bytes of the weights: every block of a row is
// read once, by four lanes, and meets all rows of activations in registers. The lanes of a team,
// one warp or the four of a block, take the row's blocks in turn; a lane adds what is its own in
// ascending K, then the lanes of a warp are added as a tree and the warps in their order. All that
// follows from the matrix's shape: a row of activations gets the same bits beside any others.
//
// Quantised weights are multiplied with quantised activations, as everywhere: exact integer
// products of 8 columns (4 of each half of a block), then one fused multiply-add. Float weights
// meet float activations.

namespace facet::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kOutputs = 2;  // rows of the matrix that a team computes, for what they share of x
// With fewer rows than this a warp to every two of them would be less than 15 warps to each of 132
// multiprocessors, too few to keep the memory busy. There four warps are a team.
constexpr int kRowsOfOneWarp = 4096;

// What a thread is to compute.
struct Share {
  int first_row = 0;  // of the matrix
  int part = 0;       // which of the team's shares of the columns: of `parts`, by warp
  int parts = 1;
  int root = 0;
};

// Rows beyond the last repeat it; their results are not stored.
__device__ __forceinline__ int64_t Clamped(int64_t row, int count) {
  return row < count ? row : count - 1;
}

// acc += the product of this lane's 8 columns of a block.
template <typename Reader>
__device__ __forceinline__ float AddBlock(const BlockShare& w, uint32_t x_low, uint32_t x_high,
                                          float x_scale, float x_sum, float acc) {
  const int32_t low = DotS8(w.low, x_low, 0);
  if (Reader::kHalves) {
    acc = FmaRn(static_cast<float>(low), MulRn(w.scale, x_scale), acc);
    const int32_t high = DotS8(w.high, x_high, 0);
    return FmaRn(static_cast<float>(high), MulRn(w.scale_high, x_scale), acc);
  }
  const int32_t dot = DotS8(w.high, x_high, low);
  acc = FmaRn(static_cast<float>(dot), MulRn(w.scale, x_scale), acc);
  return Reader::kHasMin ? FmaRn(w.min, x_sum, acc) : acc;
}

// Weights in blocks of 32 columns, eight blocks to a warp.
template <typename Reader>
struct Quantized {
  template <int kRows>
  static __device__ __forceinline__ void Add(const LeafProducts& args, const uint8_t* weights,
                                             const Share& share, float (&acc)[kOutputs][kRows]) {
    const int lane = ThreadIndex().x % kWarpSize;
    const int t = lane % 4;
    const int64_t blocks = args.columns / 32;
    const uint8_t* row[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      row[o] = weights + Clamped(share.first_row + o, args.rows) * args.row_bytes;
    }
    const int end = args.leaf_starts[share.root + 1] / 32;
    const int begin = args.leaf_starts[share.root] / 32 + share.part * 8 + lane / 4;
    for (int block = begin; block < end; block += share.parts * 8) {
      BlockShare w[kOutputs];
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) w[o] = Reader::Read(row[o], block, t);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t x_row = Clamped(r, args.x_rows);
        const int8_t* q = args.quantized.q + x_row * args.columns + block * 32 + 4 * t;
        const uint32_t low = LoadVector<uint32_t>(q);
        const uint32_t high = LoadVector<uint32_t>(q + 16);
        const int64_t of_block = x_row * blocks + block;
        const float scale = args.quantized.scales[of_block];
        // The minimum is the whole block's: one of its four lanes adds it.
        const float sum = Reader::kHasMin && t == 0 ? args.quantized.scaled_sums[of_block] : 0;
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          acc[o][r] = AddBlock<Reader>(w[o], low, high, scale, sum, acc[o][r]);
        }
      }
    }
  }
};

struct F32Elements {
  static constexpr int kCount = 4;  // in 16 bytes
  static __device__ __forceinline__ float Input(float x) { return x; }
  static __device__ __forceinline__ void Unpack(const U32x4& v, float (&w)[kCount]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; ++i) w[i] = BitsFloat(words[i]);
  }
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return reinterpret_cast<const float*>(row)[k];
  }
};

template <bool kHalf>
struct ShortElements {
  static constexpr int kCount = 8;
  static __device__ __forceinline__ float Input(float x) { return kHalf ? x : RoundToBf16(x); }
  static __device__ __forceinline__ float ToFloat(uint32_t bits) {
    const auto element = static_cast<uint16_t>(bits);
    return kHalf ? HalfToFloat(element) : Bf16ToFloat(element);
  }
  static __device__ __forceinline__ void Unpack(const U32x4& v, float (&w)[kCount]) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    for (int i = 0; i < 4; ++i) {
      w[2 * i] = ToFloat(words[i] & 0xffffu);
      w[2 * i + 1] = ToFloat(words[i] >> 16);
    }
  }
  static __device__ __forceinline__ float Load(const uint8_t* row, int64_t k) {
    return ToFloat(Load16(row + 2 * k));
  }
};

__device__ __forceinline__ bool Aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

// Weights that are floats: 16 bytes to a lane, element by element where rows are not aligned to
// that and at a root's end.
template <typename Elements>
struct Plain {
  static constexpr int kCount = Elements::kCount;

  template <int kRows>
  static __device__ __forceinline__ void Add(const LeafProducts& args, const uint8_t* weights,
                                             const Share& share, float (&acc)[kOutputs][kRows]) {
    const int lane = ThreadIndex().x % kWarpSize;
    const uint8_t* row[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      row[o] = weights + Clamped(share.first_row + o, args.rows) * args.row_bytes;
    }
    const int64_t first = args.leaf_starts[share.root];
    const int64_t end = args.leaf_starts[share.root + 1];
    const bool vectors = Aligned(weights) && args.row_bytes % 16 == 0 && args.columns % 4 == 0 &&
                         first % kCount == 0 && Aligned(args.x);
    const int64_t step = share.parts * kWarpSize * kCount;
    for (int64_t k = first + (share.part * kWarpSize + lane) * kCount; k < end; k += step) {
      if (vectors && end - k >= kCount) {
        AddVector<kRows>(args, row, k, acc);
      } else {
        AddEach<kRows>(args, row, k, end - k < kCount ? static_cast<int>(end - k) : kCount, acc);
      }
    }
  }

 private:
  template <int kRows>
  static __device__ __forceinline__ void AddVector(const LeafProducts& args,
                                                   const uint8_t* const (&row)[kOutputs], int64_t k,
                                                   float (&acc)[kOutputs][kRows]) {
    float w[kOutputs][kCount];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      Elements::Unpack(LoadVector<U32x4>(row[o] + 16 / kCount * k), w[o]);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float* from = args.x + Clamped(r, args.x_rows) * args.columns + k;
#pragma unroll
      for (int i = 0; i < kCount; i += 4) {
        const F32x4 x = LoadVector<F32x4>(from + i);
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          acc[o][r] = FmaRn(w[o][i], Elements::Input(x.x), acc[o][r]);
          acc[o][r] = FmaRn(w[o][i + 1], Elements::Input(x.y), acc[o][r]);
          acc[o][r] = FmaRn(w[o][i + 2], Elements::Input(x.z), acc[o][r]);
          acc[o][r] = FmaRn(w[o][i + 3], Elements::Input(x.w), acc[o][r]);
        }
      }
    }
  }

  template <int kRows>
  static __device__ __forceinline__ void AddEach(const LeafProducts& args,
                                                 const uint8_t* const (&row)[kOutputs], int64_t k,
                                                 int count, float (&acc)[kOutputs][kRows]) {
    for (int i = 0; i < count; ++i) {
      for (int o = 0; o < kOutputs; ++o) {
        const float w = Elements::Load(row[o], k + i);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const float x = args.x[Clamped(r, args.x_rows) * args.columns + k + i];
          acc[o][r] = FmaRn(w, Elements::Input(x), acc[o][r]);
        }
      }
    }
  }
};

// The team's sums of one matrix, the same in all its lanes.
template <typename Weights, int kRows>
__device__ __forceinline__ void Sum(const LeafProducts& args, const uint8_t* weights,
                                    const Share& share, float (&acc)[kOutputs][kRows]) {
  FACET_SHARED(float, sums, kWarps * kOutputs * kRows);  // where there are several parts
  const int lane = ThreadIndex().x % kWarpSize;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) acc[o][r] = 0;
  }
  Weights::template Add<kRows>(args, weights, share, acc);
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
        acc[o][r] = AddRn(acc[o][r], ShuffleXor(acc[o][r], mask));
      }
    }
  }
  if (share.parts == 1) return;
  Barrier();  // what the matrix before left has been read
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int i = o * kRows + r;
      if (lane == i) sums[share.part * kOutputs * kRows + i] = acc[o][r];
    }
  }
  Barrier();
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float total = sums[o * kRows + r];
      for (int part = 1; part < kWarps; ++part) {
        total = AddRn(total, sums[part * kOutputs * kRows + o * kRows + r]);
      }
      acc[o][r] = total;
    }
  }
}

// `team`: 1, or kWarps.
template <typename Weights, int kRows>
__global__ void VectorProductKernel(LeafProducts args, int team) {
  static_assert(kOutputs * kRows <= kWarpSize, "a lane stores one result");
  const int lane = ThreadIndex().x % kWarpSize;
  const int warp = ThreadIndex().x / kWarpSize;
  Share share;
  share.first_row = (static_cast<int>(BlockIndex().x) * (kWarps / team) + warp / team) * kOutputs;
  share.part = warp % team;
  share.parts = team;
  share.root = BlockIndex().y;
  if (share.first_row >= args.rows) return;  // whole teams
  float acc[kOutputs][kRows];
  Sum<Weights, kRows>(args, args.weights, share, acc);
  if (args.gate != Gate::kNone) {
    float up[kOutputs][kRows];
    Sum<Weights, kRows>(args, args.up, share, up);
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) acc[o][r] = Gated(args.gate, acc[o][r], up[o][r]);
    }
  }
  if (share.part != 0) return;
  float* out = args.out + share.root * args.leaf_stride;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int row = share.first_row + o;
      const bool stored = lane == o * kRows + r && row < args.rows && r < args.x_rows;
      if (stored) out[r * args.out_stride + row] = acc[o][r];
    }
  }
}

template <typename Weights, int kRows>
int LaunchRows(Stream stream, const LeafProducts& args) {
  const int team = args.rows >= kRowsOfOneWarp ? 1 : kWarps;
  const int rows = kWarps / team * kOutputs;  // of a block
  const LaunchShape shape{{static_cast<unsigned>((args.rows + rows - 1) / rows),
                           static_cast<unsigned>(args.leaves)},
                          {kWarps * kWarpSize},
                          0};
  return Launch(stream, shape, VectorProductKernel<Weights, kRows>, args, team);
}

template <typename Weights>
int LaunchProducts(Stream stream, const LeafProducts& args) {
  if (args.x_rows == 1) return LaunchRows<Weights, 1>(stream, args);
  if (args.x_rows <= 4) return LaunchRows<Weights, 4>(stream, args);
  return LaunchRows<Weights, kVectorRowsMax>(stream, args);
}

}  // namespace

int VectorProducts(Stream stream, const LeafProducts& args) {
  if (args.rows == 0 || args.x_rows == 0) return 0;
  switch (args.type) {
    case TensorType::kF16:
      return LaunchProducts<Plain<ShortElements<true>>>(stream, args);
    case TensorType::kBF16:
      return LaunchProducts<Plain<ShortElements<false>>>(stream, args);
    case TensorType::kF32:
      return LaunchProducts<Plain<F32Elements>>(stream, args);
    case TensorType::kQ4_0:
      return LaunchProducts<Quantized<ReadQ4_0>>(stream, args);
    case TensorType::kQ4_1:
      return LaunchProducts<Quantized<ReadQ4_1>>(stream, args);
    case TensorType::kQ5_0:
      return LaunchProducts<Quantized<ReadQ5_0>>(stream, args);
    case TensorType::kQ5_1:
      return LaunchProducts<Quantized<ReadQ5_1>>(stream, args);
    case TensorType::kQ4_K:
      return LaunchProducts<Quantized<ReadQ4_K>>(stream, args);
    case TensorType::kQ5_K:
      return LaunchProducts<Quantized<ReadQ5_K>>(stream, args);
    case TensorType::kQ6_K:
      return LaunchProducts<Quantized<ReadQ6_K>>(stream, args);
    default:
      return LaunchProducts<Quantized<ReadQ8_0>>(stream, args);
  }
}

}  // namespace facet::cuda
