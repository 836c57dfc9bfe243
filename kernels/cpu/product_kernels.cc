// Products of one panel of integer weights, F32 or F16 with tiles of rows. The panel's weights are
// unpacked once per tile, or once for all; every output element is one lane of one accumulator, and
// K ascends, so neither the number of rows nor the instruction set changes a bit.

#include <type_traits>

#include "kernels/cpu/block_product.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/panel_product.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/simd_bytes.h"

namespace facet {
namespace FACET_ISA {
namespace {

template <PackedFormat kFormat>
struct IntegerLeaf {
  template <int kRows, int kHalves, typename P>
  FACET_INLINE void Add(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                        int64_t end, int first_half, P* prefetcher, VecF (&acc)[kRows][kHalves]) {
    using B = Block<kFormat>;
    const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
    const Byte* low = reinterpret_cast<const Byte*>(args.low);
    for (int64_t b = begin / 32; b < end / 32; ++b) {
      prefetcher->Step();
      AddPart<B, kRows, kHalves, 0>(B::At(panel, low, b), first_half,
                                    BlockInputs<kRows>::At(tile, b), acc);
    }
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

// The same sums, and what is unpacked for them written down.
template <PackedFormat kFormat>
struct KeepingLeaf {
  template <int kRows, int kHalves, typename P>
  FACET_INLINE void Add(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                        int64_t end, int first_half, P* prefetcher, VecF (&acc)[kRows][kHalves]) {
    using B = KeptBlock<kFormat>;
    const Byte* panel = reinterpret_cast<const Byte*>(args.panel);
    const Byte* low = reinterpret_cast<const Byte*>(args.low);
    Byte* unpacked = reinterpret_cast<Byte*>(args.unpacked);
    for (int64_t b = begin / 32; b < end / 32; ++b) {
      prefetcher->Step();
      AddPart<B, kRows, kHalves, 0>(B::At(panel, low, b, unpacked), first_half,
                                    BlockInputs<kRows>::At(tile, b), acc);
    }
  }
};

template <PackedFormat kFormat>
struct FloatLeaf {
  FACET_INLINE VecF Weights(const Byte* p) {
    if constexpr (kFormat == PackedFormat::kF32) return Load(reinterpret_cast<const float*>(p));
    if constexpr (kFormat == PackedFormat::kF16) return LoadHalf(p);
  }

  template <int kRows, int kHalves, typename P>
  FACET_INLINE void Add(const PanelArgs& args, const ActivationTile& tile, int64_t begin,
                        int64_t end, int first_half, P* prefetcher, VecF (&acc)[kRows][kHalves]) {
    constexpr int kStep = LayoutOf(kFormat).weight_bytes;  // per K
    const Byte* weights = reinterpret_cast<const Byte*>(args.panel) + begin * kStep;
    const float* x = tile.x;
    for (int64_t k = begin; k < end; ++k, weights += kStep) {
      if (k % 32 == 0) prefetcher->Step();
      VecF w[kHalves];
      FACET_UNROLL
      for (int h = 0; h < kHalves; ++h) w[h] = Weights(weights + (first_half + h) * (kStep / 2));
      FACET_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const VecF value = Set(x[r * tile.columns + k]);
        FACET_UNROLL
        for (int h = 0; h < kHalves; ++h) acc[r][h] = Fma(w[h], value, acc[r][h]);
      }
    }
  }
};

// The first tile writes down what it unpacks, for the others. Fits KernelTable::keeping_product.
template <PackedFormat kFormat>
void KeepingProduct(const PanelArgs& args) {
  auto prefetcher = Prefetcher<kFormat>::For(args);
  RunTile<KeepingLeaf<kFormat>>(args, args.tiles[0], args.out, &prefetcher);
  PanelArgs rest = args;
  rest.panel = args.unpacked;
  float* out = args.out;
  for (int i = 1; i < args.tile_count; ++i) {
    out += args.tiles[i - 1].rows * args.row_stride;
    RunTile<IntegerLeaf<UnpackedFormat(kFormat)>>(rest, args.tiles[i], out, &prefetcher);
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
  using Leaf =
      std::conditional_t<LayoutOf(kFormat).is_float, FloatLeaf<kFormat>, IntegerLeaf<kFormat>>;
  table->product[static_cast<int>(kFormat)] = &Product<kFormat, Leaf>;
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
