// Products of one panel of bfloat16 weights with tiles of rows. Where there are dot products of
// bfloat16 they are used; elsewhere two fused multiply-adds give their bits: the odd column of a
// pair first, and with numbers below the normal ones taken for zero before and after each.

#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/panel_product.h"
#include "kernels/cpu/simd.h"

namespace facet {
namespace FACET_ISA {
namespace {

#if defined(__AVX512BF16__)

// Those instructions flush subnormal numbers whatever the control register says.
struct FlushScope {
  template <int kRows, int kHalves>
  FACET_INLINE unsigned Enter(VecF (&)[kRows][kHalves]) {
    return 0;
  }
  template <int kRows, int kHalves>
  FACET_INLINE void Leave(unsigned, VecF (&)[kRows][kHalves]) {}
};

// The pairs of sixteen columns of a panel.
struct Pairs {
  __m512bh both;

  FACET_INLINE Pairs Of(VecI pairs) { return {(__m512bh)pairs.v}; }
  [[gnu::always_inline]] VecF DotOnto(Pairs x, VecF acc) const {
    return {_mm512_dpbf16_ps(acc.v, both, x.both)};
  }
};

#else

// From Enter() to Leave() subnormal numbers count as zeros. The compiler knows nothing of that:
// what is computed in between depends on the accumulators, which it believes to change at both
// ends.
struct FlushScope {
  template <int kRows, int kHalves>
  FACET_INLINE unsigned Enter(VecF (&acc)[kRows][kHalves]) {
    constexpr unsigned kFlush = 1u << 15, kInputsToo = 1u << 6;
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | kFlush | kInputsToo);
    Pin(acc);
    return before;
  }
  template <int kRows, int kHalves>
  FACET_INLINE void Leave(unsigned before, VecF (&acc)[kRows][kHalves]) {
    Pin(acc);
    _mm_setcsr(before);
  }

 private:
  template <int kRows, int kHalves>
  FACET_INLINE void Pin(VecF (&acc)[kRows][kHalves]) {
    FACET_UNROLL
    for (int r = 0; r < kRows; ++r) {
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) PinRegisters(&acc[r][h]);
    }
  }
};

struct Pairs {
  VecF even, odd;

  FACET_INLINE Pairs Of(VecI pairs) {
    return {AsFloat(ShiftLeft<16>(pairs)), AsFloat(And(pairs, SetI(-65536)))};
  }
  [[gnu::always_inline]] VecF DotOnto(Pairs x, VecF acc) const {
    return Fma(even, x.even, Fma(odd, x.odd, acc));
  }
};

#endif

struct PairLeaf {
  template <int kRows, int kHalves, typename P>
  FACET_INLINE void Add(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                        int64_t end, int first_half, P* prefetcher, VecF (&acc)[kRows][kHalves]) {
    constexpr int kPairBytes = 2 * LayoutOf(PackedFormat::kBF16).weight_bytes;
    const Byte* weights = reinterpret_cast<const Byte*>(args.panel) + begin / 2 * kPairBytes;
    const unsigned before = FlushScope::Enter(acc);
    for (int64_t k = begin; k < end; k += 2, weights += kPairBytes) {
      if (k % 32 == 0) prefetcher->Step();
      Pairs w[kHalves];
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) {
        const Byte* at = weights + (first_half + h) * (kPairBytes / 2);
        w[h] = Pairs::Of(LoadI(reinterpret_cast<const int32_t*>(at)));
      }
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const Pairs x = Pairs::Of(SetI(tile.pairs[r * tile.pair_stride + k / 2]));
        FACET_UNROLL
        for (int h = 0; h < kHalves; ++h) acc[r][h] = w[h].DotOnto(x, acc[r][h]);
      }
    }
    FlushScope::Leave(before, acc);
  }
};

// To bfloat16, ties to even, in the upper halves of the lanes; NaN stays NaN, and what is below the
// normal numbers becomes a zero.
FACET_INLINE VecI Round(VecI bits) {
  const VecI magnitude = And(bits, SetI(0x7fffffff));
  const VecI odd = And(ShiftRight<16>(bits), SetI(1));
  VecI rounded = Add(Add(bits, SetI(0x7fff)), odd);
  const VecI quiet = Add(And(bits, SetI(~0x400000)), SetI(0x400000));
  rounded = Select(AtLeast(magnitude, SetI(0x7f800001)), quiet, rounded);
  const Mask normal = AtLeast(And(rounded, SetI(0x7fffffff)), SetI(0x00800000));
  return And(Select(normal, rounded, And(bits, SetI(INT32_MIN))), SetI(-65536));
}

FACET_INLINE VecI PairUp(VecI even, VecI odd) {
  return Add(Round(odd), And(ShiftRight<16>(Round(even)), SetI(0xffff)));
}

void RoundRow(const float* x, int64_t columns, int32_t* pairs) {
  const int32_t* bits = reinterpret_cast<const int32_t*>(x);
  VecI even, odd;
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) {
    LoadPairs(bits + k, &even, &odd);
    StoreI(pairs + k / 2, PairUp(even, odd));
  }
  if (k == columns) return;
  alignas(64) int32_t rest[32] = {};
  for (int64_t i = 0; k + i < columns; ++i) rest[i] = bits[k + i];
  LoadPairs(rest, &even, &odd);
  StoreI(pairs + k / 2, PairUp(even, odd));
}

void RoundTile(const ActivationTile& tile) {
  for (int row = 0; row < tile.rows; ++row) {
    RoundRow(tile.x + row * tile.columns, tile.columns, tile.pairs + row * tile.pair_stride);
  }
}

}  // namespace

void AddBfloatKernels(KernelTable* table) {
  table->product[static_cast<int>(PackedFormat::kBF16)] = &Product<PackedFormat::kBF16, PairLeaf>;
  table->round_tile = &RoundTile;
}

}  // namespace FACET_ISA
}  // namespace facet
