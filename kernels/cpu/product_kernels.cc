// Products of one panel with one tile of rows. The panel's weights are unpacked once per tile;
// every output element is one lane of one accumulator, and K ascends, so neither the number of
// rows nor the instruction set changes a bit.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {
namespace {

using Byte = uint8_t;

constexpr int Log2(int power) { return power <= 1 ? 0 : 1 + Log2(power / 2); }

// The weights of one block of 32 K by 32 columns.
template <PackedFormat kFormat>
struct Block {
  static constexpr PackedLayout kLayout = LayoutOf(kFormat);
  static constexpr int kGroupsPerScale = 8 / kLayout.scales_per_block;
  // Eight-bit weights are used signed where the dot product wants them so.
  static constexpr bool kSigned = kLayout.bits == 8 && !kWideWeights;
  static constexpr int kOffset = kSigned ? 0 : kLayout.offset;

  const Byte* header;  // of the super-block
  const Byte* scales;
  const Byte* weights;
  const Byte* high;

  FACET_INLINE Block At(const Byte* panel, int64_t index) {
    const Byte* header = panel + index / kLayout.super_blocks * kLayout.super_bytes();
    const Byte* scales =
        header + kLayout.header_bytes + index % kLayout.super_blocks * kLayout.block_bytes();
    const Byte* weights = scales + kLayout.scale_bytes;
    return {header, scales, weights, weights + kLayout.weight_bytes};
  }

  // The scales of 16 columns.
  [[gnu::always_inline]] VecF Scale(int half, int part) const {
    if constexpr (kFormat == PackedFormat::kQ6K) {
      return Mul(LoadHalf(header + 32 * half), LoadSigned(scales + 32 * part + 16 * half));
    } else if constexpr (kLayout.super_blocks > 1) {
      return Mul(LoadHalf(header + 32 * half), LoadUnsigned(scales + 16 * half));
    } else {
      return LoadHalf(scales + 32 * half);
    }
  }

  // What is added per unit of the activations' sum.
  [[gnu::always_inline]] VecF Min(int half) const {
    if constexpr (kLayout.super_blocks > 1) {
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
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecB a0 = Broadcast4(q + 4 * (2 * kPair * kRows + r));
      const VecB a1 = Broadcast4(q + 4 * ((2 * kPair + 1) * kRows + r));
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) {
        dots[r][h] = Dot<B::kLayout.bits>(dots[r][h], even[h], a0, odd[h], a1);
      }
    }
    AddDots<B, kRows, kHalves, kPair + 1, kPairEnd>(block, first_half, q, dots);
  }
}

// Where the activations of one block begin.
template <int kRows>
struct BlockInputs {
  const int8_t* q;
  const float* scale;
  const float* scaled_sum;
  const int32_t* negated_sum;

  FACET_INLINE BlockInputs At(const ActivationTile& tile, int64_t index) {
    return {tile.q + index * 32 * kRows, tile.scale + index * kRows,
            tile.scaled_sum + index * kRows, tile.negated_sum + index * 3 * kRows};
  }
};

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
        start = ShiftLeft<Log2(B::kOffset)>(SetI(in.negated_sum[kSum * kRows + r]));
      }
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) dots[r][h] = start;
    }
    constexpr int kPairs = B::kGroupsPerScale / 2;
    AddDots<B, kRows, kHalves, kPart * kPairs, (kPart + 1) * kPairs>(block, first_half, in.q, dots);
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

FACET_INLINE const std::byte* PrefetchLines(const std::byte* next, int lines) {
  for (int i = 0; i < lines; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T0);
  return next + 64 * static_cast<ptrdiff_t>(lines);
}

template <int kRows, int kHalves>
FACET_INLINE void StoreTile(const VecF (&acc)[kRows][kHalves], int first_half, float* out) {
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      Store(out + r * kPanelColumns + kHalfPanel * (first_half + h), acc[r][h]);
    }
  }
}

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyInts(const ProductArgs& args, int first_half) {
  using B = Block<kFormat>;
  VecF acc[kRows][kHalves];
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) acc[r][h] = Zero();
  }
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const std::byte* next = args.prefetch.next;
  for (int64_t b = args.begin / 32; b < args.end / 32; ++b) {
    next = PrefetchLines(next, args.prefetch.lines_per_block);
    AddPart<B, kRows, kHalves, 0>(B::At(panel, b), first_half, BlockInputs<kRows>::At(args.tile, b),
                                  acc);
  }
  StoreTile(acc, first_half, args.out);
}

template <PackedFormat kFormat>
FACET_INLINE VecF LoadWeights(const Byte* p) {
  if constexpr (kFormat == PackedFormat::kF32) return Load(reinterpret_cast<const float*>(p));
  if constexpr (kFormat == PackedFormat::kF16) return LoadHalf(p);
  if constexpr (kFormat == PackedFormat::kBF16) return LoadBFloat(p);
}

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyFloats(const ProductArgs& args, int first_half) {
  constexpr int kStep = LayoutOf(kFormat).weight_bytes;  // per K
  VecF acc[kRows][kHalves];
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) acc[r][h] = Zero();
  }
  const Byte* weights = reinterpret_cast<const Byte*>(args.panel) + args.begin * kStep;
  const std::byte* next = args.prefetch.next;
  const float* x = args.tile.x;
  for (int64_t k = args.begin; k < args.end; ++k, weights += kStep) {
    if (k % 32 == 0) next = PrefetchLines(next, args.prefetch.lines_per_block);
    VecF w[kHalves];
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      w[h] = LoadWeights<kFormat>(weights + (first_half + h) * (kStep / 2));
    }
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecF value = Set(x[r * args.tile.columns + k]);
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) acc[r][h] = Fma(w[h], value, acc[r][h]);
    }
  }
  StoreTile(acc, first_half, args.out);
}

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void Multiply(const ProductArgs& args, int first_half) {
  if constexpr (LayoutOf(kFormat).is_float) {
    MultiplyFloats<kFormat, kRows, kHalves>(args, first_half);
  } else {
    MultiplyInts<kFormat, kRows, kHalves>(args, first_half);
  }
}

template <PackedFormat kFormat, int kRows>
void Product(const ProductArgs& args) {
  if constexpr (kWideTile) {
    Multiply<kFormat, kRows, 2>(args, 0);
  } else {
    Multiply<kFormat, kRows, 1>(args, 0);
    Multiply<kFormat, kRows, 1>(args, 1);
  }
}

template <PackedFormat kFormat>
void AddFormat(KernelTable* table) {
  auto& by_rows = table->product[static_cast<int>(kFormat)];
  static_assert(kTileRows == 6);
  by_rows[0] = &Product<kFormat, 1>;
  by_rows[1] = &Product<kFormat, 2>;
  by_rows[2] = &Product<kFormat, 3>;
  by_rows[3] = &Product<kFormat, 4>;
  by_rows[4] = &Product<kFormat, 5>;
  by_rows[5] = &Product<kFormat, 6>;
}

}  // namespace

void AddProductKernels(KernelTable* table) {
  AddFormat<PackedFormat::kQ8>(table);
  AddFormat<PackedFormat::kQ4>(table);
  AddFormat<PackedFormat::kQ4Min>(table);
  AddFormat<PackedFormat::kQ5>(table);
  AddFormat<PackedFormat::kQ5Min>(table);
  AddFormat<PackedFormat::kQ4K>(table);
  AddFormat<PackedFormat::kQ5K>(table);
  AddFormat<PackedFormat::kQ6K>(table);
  AddFormat<PackedFormat::kF32>(table);
  AddFormat<PackedFormat::kF16>(table);
  AddFormat<PackedFormat::kBF16>(table);
}

}  // namespace FACET_ISA
}  // namespace facet
