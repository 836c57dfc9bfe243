#ifndef FACET_KERNELS_CPU_PANEL_PRODUCT_H_
#define FACET_KERNELS_CPU_PANEL_PRODUCT_H_

// How a product walks over a panel: tile by tile, leaf by leaf, and the tree over the leaves. What
// a leaf adds up is told by a type with
//   template <int kRows, int kHalves, typename P>
//   static void Add(const PanelArgs&, const ActivationTile&, int64_t begin, int64_t end,
//                   int first_half, P* prefetcher, VecF (&acc)[kRows][kHalves]);
// for the columns [begin, end), K ascending, and kHalves halves of the panel from first_half on. It
// steps the prefetcher once per 32 columns. Compiled once per instruction set, like simd.h.

#include "kernels/cpu/block_product.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {

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
template <typename Leaf, int kRows, int kHalves, typename P>
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
      Leaf::Add(args, tile, begin, end, first_half, prefetcher, acc);
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
template <typename Leaf, int kRows, typename P>
[[gnu::noinline]] void Tile(const PanelArgs& args, const ActivationTile& tile, float* out,
                            P* prefetcher) {
  P local = *prefetcher;
  if constexpr (kWideTile) {
    MultiplyTile<Leaf, kRows, 2>(args, tile, 0, out, &local);
  } else {
    MultiplyTile<Leaf, kRows, 1>(args, tile, 0, out, &local);
    MultiplyTile<Leaf, kRows, 1>(args, tile, 1, out, &local);
  }
  *prefetcher = local;
}

template <typename Leaf, typename P>
FACET_INLINE void RunTile(const PanelArgs& args, const ActivationTile& tile, float* out,
                          P* prefetcher) {
  static_assert(kTileRows == 6);
  switch (tile.rows) {
    case 1:
      return Tile<Leaf, 1>(args, tile, out, prefetcher);
    case 2:
      return Tile<Leaf, 2>(args, tile, out, prefetcher);
    case 3:
      return Tile<Leaf, 3>(args, tile, out, prefetcher);
    case 4:
      return Tile<Leaf, 4>(args, tile, out, prefetcher);
    case 5:
      return Tile<Leaf, 5>(args, tile, out, prefetcher);
    default:
      return Tile<Leaf, 6>(args, tile, out, prefetcher);
  }
}

// Fits KernelTable::product.
template <PackedFormat kFormat, typename Leaf>
void Product(const PanelArgs& args) {
  auto prefetcher = Prefetcher<kFormat>::For(args);
  float* out = args.out;
  for (int i = 0; i < args.tile_count; ++i) {
    RunTile<Leaf>(args, args.tiles[i], out, &prefetcher);
    out += args.tiles[i].rows * args.row_stride;
  }
}

}  // namespace FACET_ISA
}  // namespace facet

#endif  // FACET_KERNELS_CPU_PANEL_PRODUCT_H_
