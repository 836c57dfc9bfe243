#ifndef FACET_KERNELS_CPU_BLOCK_PRODUCT_H_
#define FACET_KERNELS_CPU_BLOCK_PRODUCT_H_

// Products of one block of integer weights with the activations of some rows: what products of
// whole panels and the completion of single columns have in common. Compiled once per instruction
// set, like simd.h. Integer dot products are exact, so a split format gives the bits of the
// unsplit one, however its weights are read.

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_bytes.h"

namespace facet {
namespace FACET_ISA {

using Byte = uint8_t;

constexpr int Log2(int power) { return power <= 1 ? 0 : 1 + Log2(power / 2); }

// The weights of one block of 32 K by 32 columns.
template <PackedFormat kFormat>
struct Block {
  static constexpr PackedLayout kLayout = LayoutOf(kFormat);
  static constexpr int kPairs = 4 / kLayout.scales_per_block;  // of groups, under one scale
  // Eight-bit weights are used signed where the dot product wants them so.
  static constexpr bool kSigned = kLayout.bits == 8 && !kWideWeights;
  static constexpr int kOffset = kSigned ? 0 : kLayout.offset;
  static_assert(!(kSigned && IsUnpacked(kFormat)));

  const Byte* header;  // of the super-block
  const Byte* scales;
  const Byte* weights;
  const Byte* high;

  // `low`: of split formats, the low bits of the panel.
  FACET_INLINE Block At(const Byte* panel, const Byte* /*low*/, int64_t index) {
    const Byte* header = panel + index / kLayout.super_blocks * kLayout.super_bytes();
    const Byte* scales =
        header + kLayout.header_bytes + index % kLayout.super_blocks * kLayout.block_bytes();
    const Byte* weights = scales + kLayout.scale_bytes;
    return {header, scales, weights, weights + kLayout.weight_bytes};
  }

  // The scales of 16 columns.
  [[gnu::always_inline]] VecF Scale(int half, int part) const {
    if constexpr (IsUnpacked(kFormat)) {
      return Load(reinterpret_cast<const float*>(scales + 128 * part + 64 * half));
    } else if constexpr (kFormat == PackedFormat::kQ6K) {
      return Mul(LoadHalf(header + 32 * half), LoadSigned(scales + 32 * part + 16 * half));
    } else if constexpr (kLayout.super_blocks > 1) {
      return Mul(LoadHalf(header + 32 * half), LoadUnsigned(scales + 16 * half));
    } else {
      return LoadHalf(scales + 32 * half);
    }
  }

  // What is added per unit of the activations' sum.
  [[gnu::always_inline]] VecF Min(int half) const {
    if constexpr (IsUnpacked(kFormat)) {
      return Load(reinterpret_cast<const float*>(scales + 128 + 64 * half));
    } else if constexpr (kLayout.super_blocks > 1) {
      return Negate(Mul(LoadHalf(header + 64 + 32 * half), LoadUnsigned(scales + 32 + 16 * half)));
    } else {
      return LoadHalf(scales + 64 + 32 * half);
    }
  }

  // The weights of groups 2 kPair and 2 kPair + 1.
  template <int kPair>
  [[gnu::always_inline]] void Unpack(int half, VecB* even, VecB* odd) const {
    if constexpr (kLayout.bits == 8) {
      *even = LoadBytes(weights + 256 * kPair + 64 * half);
      *odd = LoadBytes(weights + 256 * kPair + 128 + 64 * half);
#if !defined(__AVX512F__)
      *even = FlipSigns(*even);
      *odd = FlipSigns(*odd);
#endif
    } else {
      const VecB both = LoadBytes(weights + 128 * kPair + 64 * half);
      *even = LowNibbles(both);
      *odd = HighNibbles(both);
    }
    if constexpr (kLayout.bits == 5) {
      const VecB bits = LoadBytes(high + 64 * half);
      *even = OrShifted<4 - 2 * kPair>(*even, bits, 0x10);
      *odd = OrShifted<3 - 2 * kPair>(*odd, bits, 0x10);
    }
    if constexpr (kLayout.bits == 6) {
      const VecB bits = LoadBytes(high + 128 * (kPair / 2) + 64 * half);
      constexpr int kShift = 4 - 4 * (kPair % 2);
      *even = OrShifted<kShift>(*even, bits, 0x30);
      *odd = OrShifted<kShift - 2>(*odd, bits, 0x30);
    }
  }
};

// The same of a split format.
template <PackedFormat kFormat>
requires(IsSplit(kFormat)) struct Block<kFormat> {
  static constexpr SplitLayout kSplit = SplitLayoutOf(kFormat);
  static constexpr PackedLayout kLayout = kSplit.whole;
  static constexpr int kPairs = 4 / kLayout.scales_per_block;
  static constexpr bool kSigned = kLayout.bits == 8 && !kWideWeights;
  static constexpr int kOffset = kSigned ? 0 : kLayout.offset;

  const Byte* header;  // of the super-block
  const Byte* scales;
  const Byte* high;
  const Byte* low;

  FACET_INLINE Block At(const Byte* panel, const Byte* low, int64_t index) {
    const Byte* scales = panel + kSplit.scales_at(index);
    return {panel + kSplit.header_at(index), scales, scales + kLayout.scale_bytes,
            low + index * kSplit.low_bytes()};
  }

  [[gnu::always_inline]] VecF Scale(int half, int part) const {
    if constexpr (kFormat == PackedFormat::kQ6KSplit) {
      return Mul(LoadHalf(header + 32 * half), LoadSigned(scales + 32 * part + 16 * half));
    } else {
      return LoadHalf(scales + 32 * half);
    }
  }

  // The high bits of groups 2 pair and 2 pair + 1.
  [[gnu::always_inline]] void High(int pair, int half, VecB* even, VecB* odd) const {
    const VecB both = LoadBytes(high + 128 * pair + 64 * half);
    *even = HighNibbles(both);
    *odd = LowNibbles(both);
  }

  // The low bits of these groups, whose granule must have been chosen.
  template <int kPair>
  [[gnu::always_inline]] void Low(int half, VecB* even, VecB* odd) const {
    if constexpr (kSplit.low_bits == 4) {
      const VecB both = LoadBytes(low + 128 * kPair + 64 * half);
      *even = LowNibbles(both);
      *odd = LowNibbles(RotatedLanes<4>(both));
    } else {
      const VecB bits = LoadBytes(low + 128 * (kPair / 2) + 64 * half);
      *even = OrShifted<-4 * (kPair % 2)>(NoBytes(), bits, 0x03);
      *odd = OrShifted<-4 * (kPair % 2) - 2>(NoBytes(), bits, 0x03);
    }
  }

  // The whole weights of these groups.
  template <int kPair>
  [[gnu::always_inline]] void Unpack(int half, VecB* even, VecB* odd) const {
    const VecB both = LoadBytes(high + 128 * kPair + 64 * half);
    if constexpr (kSplit.low_bits == 4) {
      const VecB rest = LoadBytes(low + 128 * kPair + 64 * half);
      *even = Blend(0x0f, rest, both);
      *odd = RotatedLanes<4>(Blend(0x0f, both, rest));
    } else {
      constexpr int kShift = kSplit.low_bits;
      constexpr char kMask = static_cast<char>(0x0f << kShift);
      Low<kPair>(half, even, odd);
      *even = OrShifted<kShift - 4>(*even, both, kMask);
      *odd = OrShifted<kShift>(*odd, both, kMask);
    }
#if !defined(__AVX512F__)
    if constexpr (kSigned) {
      *even = FlipSigns(*even);
      *odd = FlipSigns(*odd);
    }
#endif
  }
};

// dots += the products of two groups with the activations of every row; `q`: of the block.
template <int kBits, int kRows, int kHalves>
FACET_INLINE void AddPair(const VecB (&even)[kHalves], const VecB (&odd)[kHalves], int pair,
                          const int8_t* q, VecI (&dots)[kRows][kHalves]) {
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const VecB a0 = Broadcast4(q + 4 * (2 * pair * kRows + r));
    const VecB a1 = Broadcast4(q + 4 * ((2 * pair + 1) * kRows + r));
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      dots[r][h] = Dot<kBits>(dots[r][h], even[h], a0, odd[h], a1);
    }
  }
}

// The integer dot products of part kPart of a block (all of it, or 16 of 32).
template <typename B, int kRows, int kHalves, int kPair, int kPairEnd>
FACET_INLINE void AddDots(const B& block, int first_half, const int8_t* q,
                          VecI (&dots)[kRows][kHalves]) {
  if constexpr (kPair < kPairEnd) {
    VecB even[kHalves], odd[kHalves];
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      block.template Unpack<kPair>(first_half + h, &even[h], &odd[h]);
    }
    AddPair<B::kLayout.bits, kRows>(even, odd, kPair, q, dots);
    AddDots<B, kRows, kHalves, kPair + 1, kPairEnd>(block, first_half, q, dots);
  }
}

// Where the activations of one block begin.
template <int kRows>
struct BlockInputs {
  const int8_t* q;
  const float* scale;
  const float* scaled_sum;
  const int32_t* offset_sum[3];

  FACET_INLINE BlockInputs At(const ActivationTile& tile, int64_t index) {
    const int64_t at = index * kRows;
    return {tile.q + 32 * at,
            tile.scale + at,
            tile.scaled_sum + at,
            {tile.offset_sum[0] + at, tile.offset_sum[1] + at, tile.offset_sum[2] + at}};
  }
};

// acc += what part kPart of a block and the parts after it contribute.
template <typename B, int kRows, int kHalves, int kPart>
FACET_INLINE void AddPart(const B& block, int first_half, const BlockInputs<kRows>& in,
                          VecF (&acc)[kRows][kHalves]) {
  if constexpr (kPart < B::kLayout.scales_per_block) {
    VecI dots[kRows][kHalves];
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      VecI start = SetI(0);
      if constexpr (B::kOffset != 0) {  // -offset x sum of the activations
        constexpr int kSum = B::kLayout.scales_per_block == 1 ? 0 : 1 + kPart;
        start = SetI(in.offset_sum[kSum][r]);
        if constexpr (B::kOffset < 128) start = ShiftRight<7 - Log2(B::kOffset)>(start);
      }
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) dots[r][h] = start;
    }
    AddDots<B, kRows, kHalves, kPart * B::kPairs, (kPart + 1) * B::kPairs>(block, first_half, in.q,
                                                                           dots);
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const VecF scale = block.Scale(first_half + h, kPart);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[r][h] = Fma(ToFloat(dots[r][h]), Mul(scale, Set(in.scale[r])), acc[r][h]);
      }
      if constexpr (B::kLayout.has_min) {
        const VecF min = block.Min(first_half + h);
        FACET_UNROLL
        for (int r = 0; r < kRows; ++r) {
          acc[r][h] = Fma(min, Set(in.scaled_sum[r]), acc[r][h]);
        }
      }
    }
    AddPart<B, kRows, kHalves, kPart + 1>(block, first_half, in, acc);
  }
}

template <int kRows, int kHalves>
FACET_INLINE void Clear(VecF (&acc)[kRows][kHalves]) {
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) acc[r][h] = Zero();
  }
}

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_BLOCK_PRODUCT_H_
