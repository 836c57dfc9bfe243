#ifndef FACET_KERNELS_CUDA_BLOCK_READER_CUH_
#define FACET_KERNELS_CUDA_BLOCK_READER_CUH_

// GGUF blocks as tensor cores want them. A reader gives lane t (0..3) of a quad its share of 32
// weights of one row: columns 4t..4t+3 and 16+4t..16+4t+3, as signed bytes, with aligned loads of
// 32 bits. Blocks: checkpoint/block_formats.cc; how they lie in a row: kernels/cuda/row_layout.h.

#include "checkpoint/block_formats.h"
#include "kernels/cuda/language.cuh"

namespace facet::cuda {

// Four columns of each half of a block of 32, and what the block's product is scaled by.
struct BlockShare {
  uint32_t low;    // columns 4t..4t+3
  uint32_t high;   // columns 16+4t..16+4t+3
  float scale;     // of the block, or of columns 0..15
  float scale_high;  // of columns 16..31, where a format has two scales
  float min;       // added times the sum of the activations, where a format has one
};

__device__ __forceinline__ uint16_t Load16(const uint8_t* p) {
  return *reinterpret_cast<const uint16_t*>(p);
}
__device__ __forceinline__ uint32_t Load32(const uint8_t* p) { return LoadVector<uint32_t>(p); }
__device__ __forceinline__ float LoadHalf(const uint8_t* p) { return HalfToFloat(Load16(p)); }

// Every byte n of v, below 128, becomes n - kOffset.
template <uint32_t kOffset>
__device__ __forceinline__ uint32_t MinusOffset(uint32_t v) {
  return ((v | 0x80808080u) - kOffset * 0x01010101u) ^ 0x80808080u;
}
// Bits 0..3 become bit 4 of bytes 0..3.
__device__ __forceinline__ uint32_t FifthBits(uint32_t bits) {
  return (bits & 1u) << 4 | (bits & 2u) << 11 | (bits & 4u) << 18 | (bits & 8u) << 25;
}
__device__ __forceinline__ uint32_t Nibbles(uint32_t v) { return v & 0x0f0f0f0fu; }

// The eight six-bit scales and minima that Q4_K and Q5_K keep in twelve bytes.
__device__ __forceinline__ int SixBitScale(const uint8_t* s, int g) {
  return g < 4 ? s[g] & 63 : (s[g + 4] & 15) | (s[g - 4] >> 6) << 4;
}
__device__ __forceinline__ int SixBitMin(const uint8_t* s, int g) {
  return g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | (s[g] >> 6) << 4;
}

// A block of a row whose blocks lie in pairs: its scale, and its other kBody bytes.
struct PairedBlock {
  float scale;
  const uint8_t* body;
};
template <int kBody>
__device__ __forceinline__ PairedBlock BlockOfPair(const uint8_t* row, int block) {
  const uint8_t* pair = row + int64_t{block / 2} * (2 * (2 + kBody));
  return {LoadHalf(pair + 2 * (block % 2)), pair + 4 + kBody * (block % 2)};
}

struct ReadQ4_0 {
  static constexpr bool kHasMin = false;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const PairedBlock p = BlockOfPair<16>(row, block);
    const uint32_t v = Load32(p.body + 4 * t);
    return {MinusOffset<8>(Nibbles(v)), MinusOffset<8>(Nibbles(v >> 4)), p.scale, 0, 0};
  }
};

struct ReadQ4_1 {
  static constexpr bool kHasMin = true;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const uint8_t* p = row + int64_t{block} * 20;
    const uint32_t v = Load32(p + 4 + 4 * t);
    return {Nibbles(v), Nibbles(v >> 4), LoadHalf(p), 0, LoadHalf(p + 2)};
  }
};

struct ReadQ5_0 {
  static constexpr bool kHasMin = false;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const PairedBlock p = BlockOfPair<20>(row, block);
    const uint32_t fifth = Load32(p.body) >> (4 * t);
    const uint32_t v = Load32(p.body + 4 + 4 * t);
    return {MinusOffset<16>(Nibbles(v) | FifthBits(fifth)),
            MinusOffset<16>(Nibbles(v >> 4) | FifthBits(fifth >> 16)), p.scale, 0, 0};
  }
};

struct ReadQ5_1 {
  static constexpr bool kHasMin = true;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const uint8_t* p = row + int64_t{block} * 24;
    const uint32_t fifth = Load32(p + 4) >> (4 * t);
    const uint32_t v = Load32(p + 8 + 4 * t);
    return {Nibbles(v) | FifthBits(fifth), Nibbles(v >> 4) | FifthBits(fifth >> 16), LoadHalf(p), 0,
            LoadHalf(p + 2)};
  }
};

struct ReadQ8_0 {
  static constexpr bool kHasMin = false;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const PairedBlock p = BlockOfPair<32>(row, block);
    return {Load32(p.body + 4 * t), Load32(p.body + 16 + 4 * t), p.scale, 0, 0};
  }
};

// Groups of 32 in super-blocks of 256, alike but for the fifth bits.
template <bool kFifthBit>
struct ReadQ45_K {
  static constexpr bool kHasMin = true;
  static constexpr bool kHalves = false;
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const uint8_t* p = row + int64_t{block / 8} * (kFifthBit ? 176 : 144);
    const int g = block % 8;
    const uint8_t* qs = p + (kFifthBit ? 48 : 16) + 32 * (g / 2) + 4 * t;
    const int shift = 4 * (g % 2);
    BlockShare share;
    share.low = Nibbles(Load32(qs) >> shift);
    share.high = Nibbles(Load32(qs + 16) >> shift);
    if (kFifthBit) {
      share.low |= (Load32(p + 16 + 4 * t) >> g & 0x01010101u) << 4;
      share.high |= (Load32(p + 32 + 4 * t) >> g & 0x01010101u) << 4;
    }
    share.scale = MulRn(LoadHalf(p), static_cast<float>(SixBitScale(p + 4, g)));
    share.scale_high = 0;
    share.min = -MulRn(LoadHalf(p + 2), static_cast<float>(SixBitMin(p + 4, g)));
    return share;
  }
};
using ReadQ4_K = ReadQ45_K<false>;
using ReadQ5_K = ReadQ45_K<true>;

struct ReadQ6_K {
  static constexpr bool kHasMin = false;
  static constexpr bool kHalves = true;
  static __device__ __forceinline__ uint32_t SixBits(const uint8_t* ql, const uint8_t* qh, int g) {
    const uint32_t low = Nibbles(Load32(ql) >> (g % 4 < 2 ? 0 : 4));
    const uint32_t high = Load32(qh) >> (2 * (g % 4)) & 0x03030303u;
    return MinusOffset<32>(low | high << 4);
  }
  static __device__ __forceinline__ BlockShare Read(const uint8_t* row, int block, int t) {
    const PairedBlock p = BlockOfPair<208>(row, block / 8);
    const int g = block % 8;
    const uint8_t* ql = p.body + 64 * (g / 4) + 32 * (g % 2) + 4 * t;
    const uint8_t* qh = p.body + 128 + 32 * (g / 4) + 4 * t;
    const uint32_t scales = Load16(p.body + 192 + 2 * g);
    return {SixBits(ql, qh, g), SixBits(ql + 16, qh + 16, g),
            MulRn(p.scale, static_cast<float>(static_cast<int8_t>(scales & 255u))),
            MulRn(p.scale, static_cast<float>(static_cast<int8_t>(scales >> 8))), 0};
  }
};

// Byte i of v as a signed number.
__device__ __forceinline__ float SignedByte(uint32_t v, int i) {
  return static_cast<float>(static_cast<int8_t>(v >> (8 * i) & 255u));
}

// Column k of a row, dequantised with the roundings of checkpoint/block_formats.cc.
template <typename Reader>
__device__ __forceinline__ float ElementOf(const uint8_t* row, int64_t k) {
  const int in_block = static_cast<int>(k % 32);
  const BlockShare share = Reader::Read(row, static_cast<int>(k / 32), in_block % 16 / 4);
  const bool high = in_block >= 16;
  const float w = SignedByte(high ? share.high : share.low, in_block % 4);
  const float scaled = MulRn(Reader::kHalves && high ? share.scale_high : share.scale, w);
  return Reader::kHasMin ? AddRn(scaled, share.min) : scaled;
}

__device__ inline float ElementAt(TensorType type, const uint8_t* row, int64_t k) {
  switch (type) {
    case TensorType::kF16:
      return LoadHalf(row + 2 * k);
    case TensorType::kBF16:
      return Bf16ToFloat(Load16(row + 2 * k));
    case TensorType::kQ4_0:
      return ElementOf<ReadQ4_0>(row, k);
    case TensorType::kQ4_1:
      return ElementOf<ReadQ4_1>(row, k);
    case TensorType::kQ5_0:
      return ElementOf<ReadQ5_0>(row, k);
    case TensorType::kQ5_1:
      return ElementOf<ReadQ5_1>(row, k);
    case TensorType::kQ8_0:
      return ElementOf<ReadQ8_0>(row, k);
    case TensorType::kQ4_K:
      return ElementOf<ReadQ4_K>(row, k);
    case TensorType::kQ5_K:
      return ElementOf<ReadQ5_K>(row, k);
    case TensorType::kQ6_K:
      return ElementOf<ReadQ6_K>(row, k);
    default:
      return reinterpret_cast<const float*>(row)[k];
  }
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_BLOCK_READER_CUH_
