// Products of one panel with tiles of rows. The panel's weights are unpacked once per tile, or
// once for all; every output element is one lane of one accumulator, and K ascends, so neither the
// number of rows nor the instruction set changes a bit.

#include "kernels/cpu/block_product.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_bytes.h"

namespace facet {
namespace FACET_ISA {
namespace {

// Spreads the prefetch of some lines over the steps of a product.
struct Prefetch {
  const std::byte* next;
  const std::byte* end;
  int lines_per_step;

  FACET_INLINE Prefetch Over(const std::byte* from, int64_t lines, int64_t steps) {
    return {from, from + 64 * lines,
            static_cast<int>((lines + steps - 1) / (steps > 0 ? steps : 1))};
  }
  [[gnu::always_inline]] void Step() {
    if (next >= end) return;
    for (int i = 0; i < lines_per_step; ++i) _mm_prefetch(next + 64 * i, _MM_HINT_T0);
    next += 64 * static_cast<ptrdiff_t>(lines_per_step);
  }
};

// Of what comes next; a step is a block.
template <PackedFormat kFormat>
struct Prefetcher {
  Prefetch panel;
  Prefetch low;

  FACET_INLINE Prefetcher For(const PanelArgs& args) {
    const int64_t blocks = args.tile_count > 0 ? (args.tiles[0].columns + 31) / 32 : 0;
    const int64_t steps = blocks * args.tile_count * (kWideTile ? 1 : 2);
    return {Prefetch::Over(args.next, args.next_lines, steps),
            Prefetch::Over(args.next_low, args.next_low_lines, steps)};
  }
  [[gnu::always_inline]] void Step() {
    panel.Step();
    if constexpr (IsSplit(kFormat)) low.Step();
  }
};

// A block that is written down in the unpacked format as it is used.
template <PackedFormat kFormat>
struct KeptBlock : Block<kFormat> {
  using Base = Block<kFormat>;
  static constexpr PackedLayout kTo = LayoutOf(UnpackedFormat(kFormat));
  static_assert(!kTo.has_min);

  Byte* to;

  FACET_INLINE KeptBlock At(const Byte* panel, const Byte* low, int64_t index, Byte* unpacked) {
    return {Base::At(panel, low, index), unpacked + index * kTo.block_bytes()};
  }
  [[gnu::always_inline]] VecF Scale(int half, int part) const {
    const VecF scale = Base::Scale(half, part);
    Store(reinterpret_cast<float*>(to + 128 * part + 64 * half), scale);
    return scale;
  }
  template <int kPair>
  [[gnu::always_inline]] void Unpack(int half, VecB* even, VecB* odd) const {
    constexpr int kShift = kTo.offset - Base::kLayout.offset;
    Byte* weights = to + kTo.scale_bytes + 256 * kPair + 64 * half;
    Base::template Unpack<kPair>(half, even, odd);
    StoreShifted(weights, *even, kShift);
    StoreShifted(weights + 128, *odd, kShift);
  }
};

template <PackedFormat kFormat, bool kKeeps, int kRows, int kHalves, typename P>
FACET_INLINE void MultiplyInts(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                               int64_t end, int first_half, P* prefetcher,
                               VecF (&acc)[kRows][kHalves]) {
  const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
  const Byte* low = reinterpret_cast<const Byte*>(args.low);
  for (int64_t b = begin / 32; b < end / 32; ++b) {
    prefetcher->Step();
    const auto in = BlockInputs<kRows>::At(tile, b);
    if constexpr (kKeeps) {
      using B = KeptBlock<kFormat>;
      Byte* unpacked = reinterpret_cast<Byte*>(args.unpacked);
      AddPart<B, kRows, kHalves, 0>(B::At(panel, low, b, unpacked), first_half, in, acc);
    } else {
      using B = Block<kFormat>;
      AddPart<B, kRows, kHalves, 0>(B::At(panel, low, b), first_half, in, acc);
    }
  }
}

template <PackedFormat kFormat>
FACET_INLINE VecF LoadWeights(const Byte* p) {
  if constexpr (kFormat == PackedFormat::kF32) return Load(reinterpret_cast<const float*>(p));
  if constexpr (kFormat == PackedFormat::kF16) return LoadHalf(p);
  if constexpr (kFormat == PackedFormat::kBF16) return LoadBFloat(p);
}

template <PackedFormat kFormat, int kRows, int kHalves, typename P>
FACET_INLINE void MultiplyFloats(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                                 int64_t end, int first_half, P* prefetcher,
                                 VecF (&acc)[kRows][kHalves]) {
  constexpr int kStep = LayoutOf(kFormat).weight_bytes;  // per K
  const Byte* weights = reinterpret_cast<const Byte*>(args.panel) + begin * kStep;
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
template <PackedFormat kFormat, bool kKeeps, int kRows, int kHalves, typename P>
FACET_INLINE void MultiplyTile(const PanelArgs& args, const ActivationTile& tile, int first_half,
                               float* out, P* prefetcher) {
  alignas(64) float sums[kMaxDepth][kRows * kHalves * 16];
  for (int root = 0; root < args.roots; ++root, out += args.root_stride) {
    const int last = args.root_begin[root + 1];
    int depth = 0;
    unsigned leaves = 0;
    for (int leaf = args.root_begin[root]; leaf < last; ++leaf) {
      VecF acc[kRows][kHalves];
      Clear(acc);
      const int64_t begin = args.leaf_starts[leaf];
      const int64_t end = args.leaf_starts[leaf + 1];
      if constexpr (LayoutOf(kFormat).is_float) {
        MultiplyFloats<kFormat>(args, tile, begin, end, first_half, prefetcher, acc);
      } else {
        MultiplyInts<kFormat, kKeeps>(args, tile, begin, end, first_half, prefetcher, acc);
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
template <PackedFormat kFormat, bool kKeeps, int kRows, typename P>
[[gnu::noinline]] void Tile(const PanelArgs& args, const ActivationTile& tile, float* out,
                            P* prefetcher) {
  P local = *prefetcher;
  if constexpr (kWideTile) {
    MultiplyTile<kFormat, kKeeps, kRows, 2>(args, tile, 0, out, &local);
  } else {
    MultiplyTile<kFormat, kKeeps, kRows, 1>(args, tile, 0, out, &local);
    MultiplyTile<kFormat, kKeeps, kRows, 1>(args, tile, 1, out, &local);
  }
  *prefetcher = local;
}

template <PackedFormat kFormat, bool kKeeps, typename P>
FACET_INLINE void RunTile(const PanelArgs& args, const ActivationTile& tile, float* out,
                          P* prefetcher) {
  static_assert(kTileRows == 6);
  switch (tile.rows) {
    case 1:
      return Tile<kFormat, kKeeps, 1>(args, tile, out, prefetcher);
    case 2:
      return Tile<kFormat, kKeeps, 2>(args, tile, out, prefetcher);
    case 3:
      return Tile<kFormat, kKeeps, 3>(args, tile, out, prefetcher);
    case 4:
      return Tile<kFormat, kKeeps, 4>(args, tile, out, prefetcher);
    case 5:
      return Tile<kFormat, kKeeps, 5>(args, tile, out, prefetcher);
    default:
      return Tile<kFormat, kKeeps, 6>(args, tile, out, prefetcher);
  }
}

template <PackedFormat kFormat>
void Product(const PanelArgs& args) {
  auto prefetcher = Prefetcher<kFormat>::For(args);
  float* out = args.out;
  for (int i = 0; i < args.tile_count; ++i) {
    RunTile<kFormat, false>(args, args.tiles[i], out, &prefetcher);
    out += args.tiles[i].rows * args.row_stride;
  }
}

// The first tile writes down what it unpacks, for the others.
template <PackedFormat kFormat>
void KeepingProduct(const PanelArgs& args) {
  auto prefetcher = Prefetcher<kFormat>::For(args);
  RunTile<kFormat, true>(args, args.tiles[0], args.out, &prefetcher);
  PanelArgs rest = args;
  rest.panel = args.unpacked;
  float* out = args.out;
  for (int i = 1; i < args.tile_count; ++i) {
    out += args.tiles[i - 1].rows * args.row_stride;
    RunTile<UnpackedFormat(kFormat), false>(rest, args.tiles[i], out, &prefetcher);
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
    const auto block = Block<kFormat>::At(reinterpret_cast<const Byte*>(panel), nullptr, b);
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
  if constexpr (kWideWeights && IsSplit(kFormat)) {
    table->keeping_product[static_cast<int>(kFormat)] = &KeepingProduct<kFormat>;
  } else if constexpr (kWideWeights && UnpackedFormat(kFormat) != kFormat) {
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
  AddFormat<PackedFormat::kQ8Split>(table);
  AddFormat<PackedFormat::kQ6KSplit>(table);
  if constexpr (kWideWeights) {
    AddFormat<PackedFormat::kUnpacked>(table);
    AddFormat<PackedFormat::kUnpackedMin>(table);
    AddFormat<PackedFormat::kUnpackedHalves>(table);
  }
}

}  // namespace FACET_ISA
}  // namespace facet
