// The output layer in a split format: whole products, the narrow pass over the high bits with its
// bound, and the completion of single columns. Integer dot products are exact, so a whole product
// equals that of the unsplit format bit for bit, however its bits are read.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {
namespace {

using Byte = uint8_t;

constexpr int Log2(int power) { return power <= 1 ? 0 : 1 + Log2(power / 2); }

// One block of 32 K by 32 columns.
template <PackedFormat kFormat>
struct SplitBlock {
  static constexpr SplitLayout kSplit = SplitLayoutOf(kFormat);
  static constexpr PackedLayout kLayout = kSplit.whole;
  static constexpr int kParts = kLayout.scales_per_block;
  static constexpr int kPairs = 4 / kParts;  // pairs of groups under one scale
  // Eight-bit weights are used signed where the dot product wants them so.
  static constexpr bool kSigned = kLayout.bits == 8 && !kWideWeights;
  static constexpr int kOffset = kSigned ? 0 : kLayout.offset;

  const Byte* header;  // of the super-block
  const Byte* scales;
  const Byte* high;
  const Byte* low;

  // `low`: of the panel.
  FACET_INLINE SplitBlock At(const Byte* panel, const Byte* low, int64_t index) {
    const Byte* scales = panel + kSplit.scales_at(index);
    return {panel + kSplit.header_at(index), scales, scales + kLayout.scale_bytes,
            low + index * kSplit.low_bytes()};
  }

  // The scales of 16 columns.
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
    *even = LowNibbles(both);
    *odd = HighNibbles(both);
  }

  // The low bits of these groups, whose granule must have been chosen.
  template <int kPair>
  [[gnu::always_inline]] void Low(int half, VecB* even, VecB* odd) const {
    if constexpr (kSplit.low_bits == 4) {
      const VecB both = LoadBytes(low + 128 * kPair + 64 * half);
      *even = LowNibbles(both);
      *odd = HighNibbles(both);
    } else {
      const VecB bits = LoadBytes(low + 128 * (kPair / 2) + 64 * half);
      *even = OrShifted<-4 * (kPair % 2)>(NoBytes(), bits, 0x03);
      *odd = OrShifted<-4 * (kPair % 2) - 2>(NoBytes(), bits, 0x03);
    }
  }

  // The whole weights of these groups.
  template <int kPair>
  [[gnu::always_inline]] void Unpack(int half, VecB* even, VecB* odd) const {
    constexpr int kShift = kSplit.low_bits;
    constexpr char kMask = static_cast<char>(0x0f << kShift);
    Low<kPair>(half, even, odd);
    const VecB both = LoadBytes(high + 128 * kPair + 64 * half);
    *even = OrShifted<kShift>(*even, both, kMask);
    *odd = OrShifted<kShift - 4>(*odd, both, kMask);
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

template <typename B, int kRows, int kHalves, int kPair, int kPairEnd>
FACET_INLINE void AddWhole(const B& block, int first_half, const int8_t* q,
                           VecI (&dots)[kRows][kHalves]) {
  if constexpr (kPair < kPairEnd) {
    VecB even[kHalves], odd[kHalves];
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      block.template Unpack<kPair>(first_half + h, &even[h], &odd[h]);
    }
    AddPair<B::kLayout.bits, kRows>(even, odd, kPair, q, dots);
    AddWhole<B, kRows, kHalves, kPair + 1, kPairEnd>(block, first_half, q, dots);
  }
}

// Where the activations of one block begin.
template <int kRows>
struct WholeInputs {
  const int8_t* q;
  const float* scale;
  const int32_t* offset_sum[3];
};

template <typename B, int kRows, int kHalves, int kPart>
FACET_INLINE void AddWholePart(const B& block, int first_half, const WholeInputs<kRows>& in,
                               VecF (&acc)[kRows][kHalves]) {
  if constexpr (kPart < B::kParts) {
    VecI dots[kRows][kHalves];
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      VecI start = SetI(0);
      if constexpr (B::kOffset != 0) {  // -offset x sum of the activations
        constexpr int kSum = B::kParts == 1 ? 0 : 1 + kPart;
        start = SetI(in.offset_sum[kSum][r]);
        if constexpr (B::kOffset < 128) start = ShiftRight<7 - Log2(B::kOffset)>(start);
      }
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) dots[r][h] = start;
    }
    AddWhole<B, kRows, kHalves, kPart * B::kPairs, (kPart + 1) * B::kPairs>(block, first_half, in.q,
                                                                            dots);
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      const VecF scale = block.Scale(first_half + h, kPart);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        acc[r][h] = Fma(ToFloat(dots[r][h]), Mul(scale, Set(in.scale[r])), acc[r][h]);
      }
    }
    AddWholePart<B, kRows, kHalves, kPart + 1>(block, first_half, in, acc);
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

// Spreads the prefetch of the panel that comes next over the blocks of a product.
struct WholePrefetch {
  const std::byte* next;
  const std::byte* next_low;
  const std::byte* end;
  int lines_per_block;

  [[gnu::always_inline]] void Step() {
    if (next >= end) return;
    for (int i = 0; i < lines_per_block; ++i, next += 64, next_low += 64) {
      _mm_prefetch(next, _MM_HINT_T0);
      _mm_prefetch(next_low, _MM_HINT_T0);
    }
  }
};

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyWhole(const PanelArgs& args, const ActivationTile& tile, int first_half,
                                float* out, WholePrefetch* prefetch) {
  using B = SplitBlock<kFormat>;
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  VecF acc[kRows][kHalves];
  Clear(acc);
  for (int64_t b = 0; b < tile.columns / 32; ++b) {
    prefetch->Step();
    const int64_t at = b * kRows;
    const WholeInputs<kRows> in = {
        tile.q + 32 * at,
        tile.scale + at,
        {tile.offset_sum[0] + at, tile.offset_sum[1] + at, tile.offset_sum[2] + at}};
    AddWholePart<B, kRows, kHalves, 0>(B::At(panel, low, b), first_half, in, acc);
  }
  FACET_UNROLL
  for (int h = 0; h < kHalves; ++h) {
    const int first = kHalfPanel * (first_half + h);
    if (first >= args.columns) continue;
    const int columns = args.columns - first < kHalfPanel ? args.columns - first : kHalfPanel;
    const Mask mask = FirstLanes(columns);
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) Store(out + r * args.row_stride + first, acc[r][h], mask);
  }
}

template <PackedFormat kFormat, int kRows>
[[gnu::noinline]] void WholeTile(const PanelArgs& args, const ActivationTile& tile, float* out,
                                 WholePrefetch* prefetch) {
  WholePrefetch local = *prefetch;
  if constexpr (kWideTile) {
    MultiplyWhole<kFormat, kRows, 2>(args, tile, 0, out, &local);
  } else {
    MultiplyWhole<kFormat, kRows, 1>(args, tile, 0, out, &local);
    MultiplyWhole<kFormat, kRows, 1>(args, tile, 1, out, &local);
  }
  *prefetch = local;
}

template <PackedFormat kFormat>
void Product(const PanelArgs& args) {
  constexpr int kVisits = kWideTile ? 1 : 2;
  const int64_t steps = args.tiles[0].columns / 32 * args.tile_count * kVisits;
  WholePrefetch prefetch = {args.next, args.next_low, args.next + 64 * args.next_lines,
                            static_cast<int>((args.next_lines + steps - 1) / steps)};
  float* out = args.out;
  for (int i = 0; i < args.tile_count; ++i) {
    const ActivationTile& tile = args.tiles[i];
    switch (tile.rows) {
      case 1:
        WholeTile<kFormat, 1>(args, tile, out, &prefetch);
        break;
      case 2:
        WholeTile<kFormat, 2>(args, tile, out, &prefetch);
        break;
      case 3:
        WholeTile<kFormat, 3>(args, tile, out, &prefetch);
        break;
      case 4:
        WholeTile<kFormat, 4>(args, tile, out, &prefetch);
        break;
      case 5:
        WholeTile<kFormat, 5>(args, tile, out, &prefetch);
        break;
      default:
        WholeTile<kFormat, 6>(args, tile, out, &prefetch);
    }
    out += tile.rows * args.row_stride;
  }
}

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
  using B = SplitBlock<kFormat>;
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  VecF acc[1][1];
  Clear(acc);
  for (int64_t b = 0; b < args.blocks; ++b) {
    if (args.next != nullptr) PrefetchHalf<B>(args, b);
    const WholeInputs<1> in = {
        args.q + b * 32,
        args.scale + b,
        {args.offset_sum[0] + b, args.offset_sum[1] + b, args.offset_sum[2] + b}};
    AddWholePart<B, 1, 1, 0>(B::At(panel, low, b), args.half, in, acc);
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
  if constexpr (kPart < B::kParts) {
    const int8_t* q = args.q + b * 32 * kRows;
    const int64_t at = (b * B::kParts + kPart) * kRows;
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
  using B = SplitBlock<kFormat>;
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

template <PackedFormat kFormat>
void AddFormat(KernelTable* table) {
  static_assert(kTileRows == 6 && kNarrowRows == 4);
  table->product[static_cast<int>(kFormat)] = &Product<kFormat>;
  SplitKernels& split = table->split[kFormat == PackedFormat::kQ8Split ? 0 : 1];
  split.narrow[0] = &Narrow<kFormat, 1>;
  split.narrow[1] = &Narrow<kFormat, 2>;
  split.narrow[2] = &Narrow<kFormat, 3>;
  split.narrow[3] = &Narrow<kFormat, 4>;
  split.complete = &Complete<kFormat>;
}

}  // namespace

void AddHeadKernels(KernelTable* table) {
  AddFormat<PackedFormat::kQ8Split>(table);
  AddFormat<PackedFormat::kQ6KSplit>(table);
}

}  // namespace FACET_ISA
}  // namespace facet
