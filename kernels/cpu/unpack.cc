#include "kernels/cpu/unpack.h"

#include <cstdint>
#include <cstring>

#include "base/check.h"
#include "base/float16.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

using Byte = uint8_t;

uint16_t Load16(const Byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
// Where a block's scales begin, and its super-block.
const Byte* BlockAt(const PackedLayout& layout, const Byte* panel, int64_t index) {
  return panel + index / layout.super_blocks * layout.super_bytes() + layout.header_bytes +
         index % layout.super_blocks * layout.block_bytes();
}
const Byte* HeaderAt(const PackedLayout& layout, const Byte* panel, int64_t index) {
  return panel + index / layout.super_blocks * layout.super_bytes();
}

float HalfAt(const Byte* p) { return HalfToFloat(Load16(p)); }

struct UnpackedBlock {
  float weights[32];
  float scale[2];
  float min = 0;
};

// By format: the divisions by what a layout says are dear where the compiler does not know it.
template <PackedFormat kFormat>
void UnpackWeights(const Byte* in, int column, float* weights) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  const int lane = 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
  const Byte* high = in + kLayout.weight_bytes;
  for (int k = 0; k < 32; ++k) {
    const int g = k / 4;
    const int at = lane + k % 4;
    int value = 0;
    if (kLayout.bits == 8) {
      value = in[128 * g + at];
    } else {
      value = (in[128 * (g / 2) + at] >> (4 * (g % 2))) & 15;
    }
    if (kLayout.bits == 5) value |= ((high[at] >> g) & 1) << 4;
    if (kLayout.bits == 6) value |= ((high[128 * (g / 4) + at] >> (2 * (g % 4))) & 3) << 4;
    weights[k] = static_cast<float>(value - kLayout.offset);
  }
}

template <PackedFormat kFormat>
int LowBits(const Byte* low, int lane, int k) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  const int g = k / 4;
  if (kLayout.low_bits == 4 && g % 2 == 1) {
    return low[SplitLayout::kGranuleBytes * (g / 2) + lane + (k + 3) % 4] >> 4;
  }
  constexpr int kPerGranule = 8 / kLayout.granules;
  const int bits = low[SplitLayout::kGranuleBytes * (g / kPerGranule) + lane + k % 4];
  return bits >> (kLayout.low_bits * (g % kPerGranule)) & ((1 << kLayout.low_bits) - 1);
}

template <PackedFormat kFormat>
int SplitWeight(const Byte* high, const Byte* low, int lane, int k) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  const int g = k / 4;
  const int top = high[128 * (g / 2) + lane + k % 4] >> (4 - 4 * (g % 2)) & 15;
  return (top << kLayout.low_bits | LowBits<kFormat>(low, lane, k)) - kLayout.whole.offset;
}

template <PackedFormat kFormat>
requires(IsSplit(kFormat)) UnpackedBlock
    UnpackBlock(const Byte* panel, const Byte* low_bits, int column, int64_t index) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  const Byte* header = panel + kLayout.header_at(index);
  const Byte* scales = panel + kLayout.scales_at(index);
  const Byte* low = low_bits + index * kLayout.low_bytes();
  const int lane = 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
  UnpackedBlock block;
  for (int k = 0; k < 32; ++k) {
    block.weights[k] =
        static_cast<float>(SplitWeight<kFormat>(scales + kLayout.whole.scale_bytes, low, lane, k));
  }
  for (int part = 0; part < 2; ++part) {
    block.scale[part] =
        kFormat == PackedFormat::kQ6KSplit
            ? HalfAt(header + 2 * column) *
                  static_cast<float>(static_cast<int8_t>(scales[32 * part + column]))
            : HalfAt(scales + 2 * column);
  }
  return block;
}

template <PackedFormat kFormat>
UnpackedBlock UnpackBlock(const Byte* panel, const Byte* /*low*/, int column, int64_t index) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  const Byte* header = HeaderAt(kLayout, panel, index);
  const Byte* scales = BlockAt(kLayout, panel, index);
  UnpackedBlock block;
  UnpackWeights<kFormat>(scales + kLayout.scale_bytes, column, block.weights);
  if (kFormat == PackedFormat::kQ6K) {
    for (int part = 0; part < 2; ++part) {
      block.scale[part] = HalfAt(header + 2 * column) *
                          static_cast<float>(static_cast<int8_t>(scales[32 * part + column]));
    }
    return block;
  }
  if (kLayout.super_blocks > 1) {
    block.scale[0] = HalfAt(header + 2 * column) * static_cast<float>(scales[column]);
    block.min = -(HalfAt(header + 64 + 2 * column) * static_cast<float>(scales[32 + column]));
  } else {
    block.scale[0] = HalfAt(scales + 2 * column);
    if (kLayout.has_min) block.min = HalfAt(scales + 64 + 2 * column);
  }
  block.scale[1] = block.scale[0];
  return block;
}

void UnpackFloats(PackedFormat format, const Byte* panel, int column, int64_t columns, float scale,
                  float* out) {
  const int size = format == PackedFormat::kF32 ? 4 : 2;
  for (int64_t k = 0; k < columns; ++k) {
    const Byte* at = panel + (k * kPanelColumns + column) * size;
    float value;
    if (format == PackedFormat::kF32) {
      std::memcpy(&value, at, sizeof(value));
    } else if (format == PackedFormat::kF16) {
      value = HalfAt(at);
    } else {
      const Byte* pair = panel + (k / 2 * kPanelColumns + column) * 4;
      value = BFloat16ToFloat(Load16(pair + 2 * (k % 2)));
    }
    out[k] = value * scale;
  }
}

template <PackedFormat kFormat>
void UnpackIntegers(const Byte* panel, const Byte* low, int column, int64_t columns, float scale,
                    float* out) {
  for (int64_t k = 0; k < columns; k += kBlockColumns) {
    const UnpackedBlock block = UnpackBlock<kFormat>(panel, low, column, k / kBlockColumns);
    for (int i = 0; i < kBlockColumns; ++i) {
      float value = block.weights[i] * block.scale[i / 16];
      if (LayoutOf(kFormat).has_min) value += block.min;
      out[k + i] = value * scale;
    }
  }
}

}  // namespace

void UnpackRow(PackedFormat format, PanelAt<const std::byte> panel, int column, int64_t columns,
               float scale, float* out) {
  const Byte* from = reinterpret_cast<const Byte*>(panel.panel);
  const Byte* low = reinterpret_cast<const Byte*>(panel.low);
  const auto integers = [&]<PackedFormat kFormat>() {
    UnpackIntegers<kFormat>(from, low, column, columns, scale, out);
  };
  switch (format) {
    case PackedFormat::kQ8:
      return integers.operator()<PackedFormat::kQ8>();
    case PackedFormat::kQ4:
      return integers.operator()<PackedFormat::kQ4>();
    case PackedFormat::kQ4Min:
      return integers.operator()<PackedFormat::kQ4Min>();
    case PackedFormat::kQ5:
      return integers.operator()<PackedFormat::kQ5>();
    case PackedFormat::kQ5Min:
      return integers.operator()<PackedFormat::kQ5Min>();
    case PackedFormat::kQ4K:
      return integers.operator()<PackedFormat::kQ4K>();
    case PackedFormat::kQ5K:
      return integers.operator()<PackedFormat::kQ5K>();
    case PackedFormat::kQ6K:
      return integers.operator()<PackedFormat::kQ6K>();
    case PackedFormat::kQ8Split:
      return integers.operator()<PackedFormat::kQ8Split>();
    case PackedFormat::kQ6KSplit:
      return integers.operator()<PackedFormat::kQ6KSplit>();
    default:
      FACET_CHECK(LayoutOf(format).is_float, "no matrix is kept in format {}",
                  static_cast<int>(format));
      return UnpackFloats(format, from, column, columns, scale, out);
  }
}

}  // namespace facet
