// The search of an output layer in a split format: the narrow pass over the high bits with its
// bound, and the completion of single columns.

#include "kernels/cpu/block_product.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {
namespace {

// The lines of block `b` that completing the next half of a panel reads.
template <typename B>
FACET_INLINE void PrefetchHalf(const CompleteArgs& args, int64_t b) {
  const std::byte* scales = args.next + B::kSplit.scales_at(b);
  const std::byte* high = scales + B::kLayout.scale_bytes + 64 * args.next_half;
  const std::byte* low = args.next_low + b * B::kSplit.low_bytes() + 64 * args.next_half;
  _mm_prefetch(scales, _MM_HINT_T0);
  for (int pair = 0; pair < 4; ++pair) _mm_prefetch(high + 128 * pair, _MM_HINT_T0);
  for (int g = 0; g < B::kSplit.granules; ++g) {
    _mm_prefetch(low + SplitLayout::kGranuleBytes * g, _MM_HINT_T0);
  }
}

template <PackedFormat kFormat>
void Complete(const CompleteArgs& args) {
  using B = Block<kFormat>;
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  VecF acc[1][1];
  Clear(acc);
  for (int64_t b = 0; b < args.blocks; ++b) {
    if (args.next != nullptr) PrefetchHalf<B>(args, b);
    AddPart<B, 1, 1, 0>(B::At(panel, low, b), args.half, BlockInputs<1>::At(*args.tile, b), acc);
  }
  Store(args.out, acc[0][0]);
}

template <typename B, int kRows, int kHalves, int kPair>
FACET_INLINE void AddLowPair(const B& block, int first_half, const int8_t* q,
                             VecI (&dots)[kRows][kHalves]) {
  VecB even[kHalves], odd[kHalves];
  FACET_UNROLL
  for (int h = 0; h < kHalves; ++h) block.template Low<kPair>(first_half + h, &even[h], &odd[h]);
  AddPair<B::kSplit.low_bits, kRows>(even, odd, kPair, q, dots);
}

// Adds the low bits of the granules that `chosen` has a bit for, of those in [kPair, kPairEnd).
template <typename B, int kRows, int kHalves, int kPair, int kPairEnd>
FACET_INLINE void AddChosen(const B& block, unsigned chosen, int first_half, const int8_t* q,
                            VecI (&dots)[kRows][kHalves]) {
  if constexpr (kPair < kPairEnd) {
    constexpr unsigned kBit = 1u << (kPair * B::kSplit.granules / 4);
    if ((chosen & kBit) != 0) AddLowPair<B, kRows, kHalves, kPair>(block, first_half, q, dots);
    AddChosen<B, kRows, kHalves, kPair + 1, kPairEnd>(block, chosen, first_half, q, dots);
  }
}

FACET_INLINE VecF Magnitude(VecF a) { return AsFloat(And(AsInt(a), SetI(INT32_MAX))); }

// The narrow value and its bound, both accumulated over one part of a block.
template <typename B, int kRows, int kHalves, int kPart>
FACET_INLINE void AddNarrowPart(const NarrowArgs& args, int64_t b, const B& block, int first_half,
                                VecF (&acc)[kRows][kHalves], VecF (&spread)[kRows][kHalves]) {
  if constexpr (kPart < B::kLayout.scales_per_block) {
    const int8_t* q = args.q + b * 32 * kRows;
    const int64_t at = (b * B::kLayout.scales_per_block + kPart) * kRows;
    VecI dots[kRows][kHalves];
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) dots[r][h] = SetI(0);
    }
    FACET_UNROLL
    for (int pair = kPart * B::kPairs; pair < (kPart + 1) * B::kPairs; ++pair) {
      VecB even[kHalves], odd[kHalves];
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) block.High(pair, first_half + h, &even[h], &odd[h]);
      AddPair<4, kRows>(even, odd, pair, q, dots);
    }
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) {
        dots[r][h] = Add(ShiftLeft<B::kSplit.low_bits>(dots[r][h]), SetI(args.start[at + r]));
      }
    }
    const unsigned chosen = args.chosen[b];
    if (chosen != 0) {
      AddChosen<B, kRows, kHalves, kPart * B::kPairs, (kPart + 1) * B::kPairs>(block, chosen,
                                                                               first_half, q, dots);
    }
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const VecF scale = block.Scale(first_half + h, kPart);
      const VecF magnitude = Magnitude(scale);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[r][h] = Fma(ToFloat(dots[r][h]), Mul(scale, Set(args.scale[b * kRows + r])), acc[r][h]);
        spread[r][h] = Fma(magnitude, Set(args.spread[at + r]), spread[r][h]);
      }
    }
    AddNarrowPart<B, kRows, kHalves, kPart + 1>(args, b, block, first_half, acc, spread);
  }
}

// What the narrow pass reads of block `b` of a panel to come.
template <typename B>
FACET_INLINE void PrefetchNarrow(const NarrowArgs& args, int64_t b) {
  const std::byte* panel = args.panel + args.ahead * B::kSplit.narrow_bytes(args.blocks);
  const std::byte* next = panel + B::kSplit.scales_at(b);
  for (int i = 0; i < B::kSplit.block_bytes() / 64; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T0);
  if (b == 0) _mm_prefetch(panel, _MM_HINT_T0);
  if constexpr (B::kLayout.header_bytes > 0) {
    if (b % B::kLayout.super_blocks == 0) {
      _mm_prefetch(panel + B::kSplit.header_at(b), _MM_HINT_T0);
    }
  }
  const std::byte* low = args.low + (args.ahead * args.blocks + b) * B::kSplit.low_bytes();
  for (unsigned bits = args.chosen[b]; bits != 0; bits &= bits - 1) {
    const std::byte* granule = low + SplitLayout::kGranuleBytes * __builtin_ctz(bits);
    _mm_prefetch(granule, _MM_HINT_T0);
    _mm_prefetch(granule + 64, _MM_HINT_T0);
  }
}

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void NarrowHalves(const NarrowArgs& args, int first_half) {
  using B = Block<kFormat>;
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  VecF acc[kRows][kHalves], spread[kRows][kHalves];
  Clear(acc);
  Clear(spread);
  const bool prefetches = args.ahead > 0 && first_half == 0;
  for (int64_t b = 0; b < args.blocks; ++b) {
    if (prefetches) PrefetchNarrow<B>(args, b);
    AddNarrowPart<B, kRows, kHalves, 0>(args, b, B::At(panel, low, b), first_half, acc, spread);
  }
  FACET_UNROLL
  for (int h = 0; h < kHalves; ++h) {
    const int first = kHalfPanel * (first_half + h);
    const int columns = args.columns - first;
    if (columns <= 0) continue;
    const VecF residual = LoadUnsigned(panel + first);
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecF upper = Add(Fma(residual, spread[r][h], acc[r][h]), Set(kNarrowFloor));
      float* out = args.out + r * args.out_stride + first;
      if (columns >= kHalfPanel) {
        Store(out, upper);
      } else {
        Store(out, upper, FirstLanes(columns));
      }
    }
  }
}

template <PackedFormat kFormat, int kRows>
void Narrow(const NarrowArgs& args) {
  if constexpr (kWideTile) {
    NarrowHalves<kFormat, kRows, 2>(args, 0);
  } else {
    NarrowHalves<kFormat, kRows, 1>(args, 0);
    NarrowHalves<kFormat, kRows, 1>(args, 1);
  }
}

// Part kPart of block `b`, and if it is not this one, the next.
template <typename B, int kPart>
FACET_INLINE void AddRefined(const B& block, const RefinedPart& part, int half, const int8_t* q,
                             VecI (&dots)[1][1]) {
  if constexpr (kPart < B::kLayout.scales_per_block) {
    if (part.part == kPart) {
      AddChosen<B, 1, 1, kPart * B::kPairs, (kPart + 1) * B::kPairs>(block, part.chosen, half, q,
                                                                     dots);
    } else {
      AddRefined<B, kPart + 1>(block, part, half, q, dots);
    }
  }
}

template <typename B>
FACET_INLINE void PrefetchRefined(const RefineArgs& args, const RefinedPart& part) {
  _mm_prefetch(args.next + B::kSplit.scales_at(part.block), _MM_HINT_T0);
  const std::byte* low = args.next_low + part.block * B::kSplit.low_bytes() + 64 * args.next_half;
  for (unsigned bits = part.chosen; bits != 0; bits &= bits - 1) {
    _mm_prefetch(low + SplitLayout::kGranuleBytes * __builtin_ctz(bits), _MM_HINT_T0);
  }
}

template <PackedFormat kFormat>
void Refine(const RefineArgs& args) {
  using B = Block<kFormat>;
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  VecF delta = Zero();
  VecF less = Zero();
  for (int i = 0; i < args.part_count; ++i) {
    const RefinedPart& part = args.parts[i];
    if (args.next != nullptr) PrefetchRefined<B>(args, part);
    const B block = B::At(panel, low, part.block);
    VecI dots[1][1] = {{SetI(part.start)}};
    AddRefined<B, 0>(block, part, args.half, args.q + 32 * part.block, dots);
    const VecF scale = block.Scale(args.half, part.part);
    delta = Fma(ToFloat(dots[0][0]), Mul(scale, Set(part.scale)), delta);
    less = Fma(Magnitude(scale), Set(part.less), less);
  }
  const VecF residual = LoadUnsigned(panel + kHalfPanel * args.half);
  Store(args.upper, Fma(Negate(residual), less, Add(Load(args.upper), delta)));
}

template <PackedFormat kFormat>
void AddFormat(KernelTable* table) {
  static_assert(kNarrowRows == 4);
  SplitKernels& split = table->split[kFormat == PackedFormat::kQ8Split ? 0 : 1];
  split.narrow[0] = &Narrow<kFormat, 1>;
  split.narrow[1] = &Narrow<kFormat, 2>;
  split.narrow[2] = &Narrow<kFormat, 3>;
  split.narrow[3] = &Narrow<kFormat, 4>;
  split.refine = &Refine<kFormat>;
  split.complete = &Complete<kFormat>;
}

}  // namespace

void AddHeadKernels(KernelTable* table) {
  AddFormat<PackedFormat::kQ8Split>(table);
  AddFormat<PackedFormat::kQ6KSplit>(table);
}

}  // namespace FACET_ISA
}  // namespace facet
