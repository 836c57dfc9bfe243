// Products of one panel with tiles of rows. The panel's weights are unpacked once per tile, or
// once for all; every output element is one lane of one accumulator, and K ascends, so neither the
// number of rows nor the instruction set changes a bit.

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
  static_assert(!(kSigned && IsUnpacked(kFormat)));

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
  const int32_t* offset_sum[3];

  FACET_INLINE BlockInputs At(const ActivationTile& tile, int64_t index) {
    const int64_t at = index * kRows;
    return {tile.q + 32 * at,
            tile.scale + at,
            tile.scaled_sum + at,
            {tile.offset_sum[0] + at, tile.offset_sum[1] + at, tile.offset_sum[2] + at}};
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
        start = SetI(in.offset_sum[kSum][r]);
        if constexpr (B::kOffset < 128) start = ShiftRight<7 - Log2(B::kOffset)>(start);
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

// Spreads the prefetch of what comes next over the blocks of a product.
struct Prefetcher {
  const std::byte* next;
  const std::byte* end;
  int lines_per_block;

  // `steps` blocks will be multiplied.
  FACET_INLINE Prefetcher For(const PanelArgs& args, int64_t steps) {
    return {args.next, args.next + 64 * args.next_lines,
            static_cast<int>((args.next_lines + steps - 1) / (steps > 0 ? steps : 1))};
  }
  [[gnu::always_inline]] void Step() {
    if (next >= end) return;
    for (int i = 0; i < lines_per_block; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T0);
    next += 64 * static_cast<ptrdiff_t>(lines_per_block);
  }
};

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyInts(const std::byte* panel, const ActivationTile& tile, int64_t begin,
                               int64_t end, int first_half, Prefetcher* prefetcher,
                               VecF (&acc)[kRows][kHalves]) {
  using B = Block<kFormat>;
  for (int64_t b = begin / 32; b < end / 32; ++b) {
    prefetcher->Step();
    AddPart<B, kRows, kHalves, 0>(B::At(reinterpret_cast<const Byte*>(panel), b), first_half,
                                  BlockInputs<kRows>::At(tile, b), acc);
  }
}

template <PackedFormat kFormat>
FACET_INLINE VecF LoadWeights(const Byte* p) {
  if constexpr (kFormat == PackedFormat::kF32) return Load(reinterpret_cast<const float*>(p));
  if constexpr (kFormat == PackedFormat::kF16) return LoadHalf(p);
  if constexpr (kFormat == PackedFormat::kBF16) return LoadBFloat(p);
}

template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyFloats(const std::byte* panel, const ActivationTile& tile, int64_t begin,
                                 int64_t end, int first_half, Prefetcher* prefetcher,
                                 VecF (&acc)[kRows][kHalves]) {
  constexpr int kStep = LayoutOf(kFormat).weight_bytes;  // per K
  const Byte* weights = reinterpret_cast<const Byte*>(panel) + begin * kStep;
  const float* x = tile.x;
  for (int64_t k = begin; k < end; ++k, weights += kStep) {
    if (k % 32 == 0) prefetcher->Step();
    VecF w[kHalves];
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      w[h] = LoadWeights<kFormat>(weights + (first_half + h) * (kStep / 2));
    }
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const VecF value = Set(x[r * tile.columns + k]);
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) acc[r][h] = Fma(w[h], value, acc[r][h]);
    }
  }
}

// The depth of a sum tree over 2^31 leaves, far more than there are.
constexpr int kMaxDepth = 32;

// acc += the newest sum on the stack, which is the left one of the two.
template <int kRows, int kHalves>
FACET_INLINE void AddOnto(const float* sums, VecF (&acc)[kRows][kHalves]) {
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) {
      acc[r][h] = Add(Load(sums + 16 * (r * kHalves + h)), acc[r][h]);
    }
  }
}

template <int kRows, int kHalves>
FACET_INLINE void StoreSums(const VecF (&acc)[kRows][kHalves], float* sums) {
  FACET_UNROLL
  for (int r = 0; r < kRows; ++r) {
    FACET_UNROLL
    for (int h = 0; h < kHalves; ++h) Store(sums + 16 * (r * kHalves + h), acc[r][h]);
  }
}

// The first `columns` of the panel's columns from first_half on.
template <int kRows, int kHalves>
FACET_INLINE void WriteRows(const VecF (&acc)[kRows][kHalves], int first_half, int columns,
                            float* out, int64_t row_stride) {
  FACET_UNROLL
  for (int h = 0; h < kHalves; ++h) {
    const int begin = kHalfPanel * (first_half + h);
    if (begin + kHalfPanel <= columns) {
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) Store(out + r * row_stride + begin, acc[r][h]);
    } else if (begin < columns) {
      const Mask rest = FirstLanes(columns - begin);
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) Store(out + r * row_stride + begin, acc[r][h], rest);
    }
  }
}

// One tile with kHalves halves of the panel. After leaf number n (from 1 on) of a root the two
// newest sums are added once per trailing zero bit of n, and what remains in the end from the
// newest on: the tree of kernels/sum_tree.h.
template <PackedFormat kFormat, int kRows, int kHalves>
FACET_INLINE void MultiplyTile(const PanelArgs& args, const ActivationTile& tile, int first_half,
                               float* out, Prefetcher* prefetcher) {
  alignas(64) float sums[kMaxDepth][kRows * kHalves * 16];
  for (int root = 0; root < args.roots; ++root, out += args.root_stride) {
    const int last = args.root_begin[root + 1];
    int depth = 0;
    unsigned leaves = 0;
    for (int leaf = args.root_begin[root]; leaf < last; ++leaf) {
      VecF acc[kRows][kHalves];
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        FACET_UNROLL
        for (int h = 0; h < kHalves; ++h) acc[r][h] = Zero();
      }
      const int64_t begin = args.leaf_starts[leaf];
      const int64_t end = args.leaf_starts[leaf + 1];
      if constexpr (LayoutOf(kFormat).is_float) {
        MultiplyFloats<kFormat>(args.panel, tile, begin, end, first_half, prefetcher, acc);
      } else {
        MultiplyInts<kFormat>(args.panel, tile, begin, end, first_half, prefetcher, acc);
      }
      for (unsigned n = ++leaves; n % 2 == 0; n /= 2) AddOnto(sums[--depth], acc);
      if (leaf + 1 < last) {
        StoreSums(acc, sums[depth++]);
        continue;
      }
      while (depth > 0) AddOnto(sums[--depth], acc);
      WriteRows(acc, first_half, args.columns, out, args.row_stride);
    }
  }
}

// Not inlined: the registers of each number of rows are allocated by themselves.
template <PackedFormat kFormat, int kRows>
[[gnu::noinline]] void Tile(const PanelArgs& args, const ActivationTile& tile, float* out,
                            Prefetcher* prefetcher) {
  Prefetcher local = *prefetcher;
  if constexpr (kWideTile) {
    MultiplyTile<kFormat, kRows, 2>(args, tile, 0, out, &local);
  } else {
    MultiplyTile<kFormat, kRows, 1>(args, tile, 0, out, &local);
    MultiplyTile<kFormat, kRows, 1>(args, tile, 1, out, &local);
  }
  *prefetcher = local;
}

template <PackedFormat kFormat>
void Product(const PanelArgs& args) {
  static_assert(kTileRows == 6);
  const int64_t columns = args.tile_count > 0 ? args.tiles[0].columns : 0;
  Prefetcher prefetcher =
      Prefetcher::For(args, (columns + 31) / 32 * args.tile_count * (kWideTile ? 1 : 2));
  float* out = args.out;
  for (int i = 0; i < args.tile_count; ++i) {
    const ActivationTile& tile = args.tiles[i];
    switch (tile.rows) {
      case 1:
        Tile<kFormat, 1>(args, tile, out, &prefetcher);
        break;
      case 2:
        Tile<kFormat, 2>(args, tile, out, &prefetcher);
        break;
      case 3:
        Tile<kFormat, 3>(args, tile, out, &prefetcher);
        break;
      case 4:
        Tile<kFormat, 4>(args, tile, out, &prefetcher);
        break;
      case 5:
        Tile<kFormat, 5>(args, tile, out, &prefetcher);
        break;
      default:
        Tile<kFormat, 6>(args, tile, out, &prefetcher);
    }
    out += tile.rows * args.row_stride;
  }
}

// The 8-bit weights of a block in the unpacked format, from group 2 kPair on.
template <PackedFormat kFormat, int kPair>
FACET_INLINE void UnpackWeights(const Block<kFormat>& block, int shift, Byte* to) {
  if constexpr (kPair < 4) {
    for (int half = 0; half < 2; ++half) {
      VecB even, odd;
      block.template Unpack<kPair>(half, &even, &odd);
      StoreShifted(to + 256 * kPair + 64 * half, even, shift);
      StoreShifted(to + 256 * kPair + 128 + 64 * half, odd, shift);
    }
    UnpackWeights<kFormat, kPair + 1>(block, shift, to);
  }
}

template <PackedFormat kFormat>
void UnpackPanel(const std::byte* panel, int64_t blocks, std::byte* to) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  constexpr PackedLayout kTo = LayoutOf(UnpackedFormat(kFormat));
  Byte* out = reinterpret_cast<Byte*>(to);
  for (int64_t b = 0; b < blocks; ++b, out += kTo.block_bytes()) {
    const auto block = Block<kFormat>::At(reinterpret_cast<const Byte*>(panel), b);
    float* scales = reinterpret_cast<float*>(out);
    for (int half = 0; half < 2; ++half) {
      for (int part = 0; part < kLayout.scales_per_block; ++part) {
        Store(scales + 32 * part + 16 * half, block.Scale(half, part));
      }
      if constexpr (kLayout.has_min) Store(scales + 32 + 16 * half, block.Min(half));
    }
    UnpackWeights<kFormat, 0>(block, kTo.offset - kLayout.offset, out + kTo.scale_bytes);
  }
}

template <PackedFormat kFormat>
void AddFormat(KernelTable* table) {
  table->product[static_cast<int>(kFormat)] = &Product<kFormat>;
  if constexpr (kWideWeights && UnpackedFormat(kFormat) != kFormat) {
    table->unpack[static_cast<int>(kFormat)] = &UnpackPanel<kFormat>;
  }
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
  if constexpr (kWideWeights) {
    AddFormat<PackedFormat::kUnpacked>(table);
    AddFormat<PackedFormat::kUnpackedMin>(table);
    AddFormat<PackedFormat::kUnpackedHalves>(table);
  }
}

}  // namespace FACET_ISA
}  // namespace facet
