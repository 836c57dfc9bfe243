#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/float16.h"
#include "base/status.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

using Byte = uint8_t;

uint32_t Load32(const Byte* p) {
  uint32_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
uint16_t Load16(const Byte* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
void Store32(Byte* p, uint32_t value) { std::memcpy(p, &value, sizeof(value)); }

// One column's share of a block: the stored (unsigned) weights, four K values to a word, and the
// scales as the packed format keeps them.
struct ColumnBlock {
  uint32_t quads[8];
  Byte scales[4];  // f16 d; f16 d and m; u8 scale, min; or s8 scale[2]
};

// Four bits to the lowest bits of four bytes.
uint32_t SpreadBits(uint32_t bits) { return ((bits & 15) * 0x00204081u) & 0x01010101u; }

// The weights of a legacy block: nibbles split in halves, and with `qh` their fifth bits.
void ReadNibbles(const Byte* qs, const Byte* qh, ColumnBlock* out) {
  for (int g = 0; g < 8; ++g) {
    const uint32_t bytes = Load32(qs + 4 * (g % 4));
    out->quads[g] = (g < 4 ? bytes : bytes >> 4) & 0x0f0f0f0fu;
    if (qh != nullptr) out->quads[g] |= SpreadBits(Load32(qh) >> (4 * g)) << 4;
  }
}

void ReadQ45K(const Byte* block, int g, bool fifth_bit, ColumnBlock* out) {
  const Byte* s = block + 4;
  out->scales[0] = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | ((s[g - 4] >> 6) << 4);
  out->scales[1] = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | ((s[g] >> 6) << 4);
  const Byte* qh = block + 16;
  const Byte* qs = (fifth_bit ? block + 48 : block + 16) + 32 * (g / 2);
  for (int i = 0; i < 8; ++i) {
    out->quads[i] = (Load32(qs + 4 * i) >> (4 * (g % 2))) & 0x0f0f0f0fu;
    if (fifth_bit) out->quads[i] |= ((Load32(qh + 4 * i) >> g) & 0x01010101u) << 4;
  }
}

void ReadQ6K(const Byte* block, int g, ColumnBlock* out) {
  const Byte* ql = block + 64 * (g / 4) + 32 * (g % 2);
  const Byte* qh = block + 128 + 32 * (g / 4);
  std::memcpy(out->scales, block + 192 + 2 * g, 2);
  for (int i = 0; i < 8; ++i) {
    out->quads[i] = (Load32(ql + 4 * i) >> (g % 4 < 2 ? 0 : 4)) & 0x0f0f0f0fu;
    out->quads[i] |= ((Load32(qh + 4 * i) >> (2 * (g % 4))) & 0x03030303u) << 4;
  }
}

// Group `g` of 32 of a block in the file.
void ReadColumnBlock(TensorType type, const Byte* block, int g, ColumnBlock* out) {
  std::memcpy(out->scales, block, 4);  // right for the legacy types
  switch (type) {
    case TensorType::kQ4_0:
      return ReadNibbles(block + 2, nullptr, out);
    case TensorType::kQ4_1:
      return ReadNibbles(block + 4, nullptr, out);
    case TensorType::kQ5_0:
      return ReadNibbles(block + 6, block + 2, out);
    case TensorType::kQ5_1:
      return ReadNibbles(block + 8, block + 4, out);
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
      return ReadQ45K(block, g, type == TensorType::kQ5_K, out);
    case TensorType::kQ6_K:
      return ReadQ6K(block, g, out);
    default:  // Q8_0: q + 128
      for (int i = 0; i < 8; ++i) out->quads[i] = Load32(block + 2 + 4 * i) ^ 0x80808080u;
  }
}

void WriteWeights(const PackedLayout& layout, const ColumnBlock& block, int column, Byte* out) {
  const int half = column / kHalfPanel;
  const int lane = 4 * (column % kHalfPanel);
  if (layout.bits == 8) {
    for (int g = 0; g < 8; ++g) Store32(out + 128 * g + 64 * half + lane, block.quads[g]);
    return;
  }
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t even = block.quads[2 * pair] & 0x0f0f0f0fu;
    const uint32_t odd = block.quads[2 * pair + 1] & 0x0f0f0f0fu;
    Store32(out + 128 * pair + 64 * half + lane, even | odd << 4);
  }
  Byte* high = out + layout.weight_bytes;
  if (layout.bits == 5) {
    uint32_t bits = 0;
    for (int g = 0; g < 8; ++g) bits |= ((block.quads[g] >> 4) & 0x01010101u) << g;
    Store32(high + 64 * half + lane, bits);
  }
  if (layout.bits == 6) {
    for (int four = 0; four < 2; ++four) {
      uint32_t bits = 0;
      for (int i = 0; i < 4; ++i) {
        bits |= ((block.quads[4 * four + i] >> 4) & 0x03030303u) << (2 * i);
      }
      Store32(high + 128 * four + 64 * half + lane, bits);
    }
  }
}

void WriteScales(const PackedLayout& layout, const ColumnBlock& block, int column, Byte* out) {
  if (layout.super_blocks > 1) {
    out[column] = block.scales[0];
    out[32 + column] = block.scales[1];
    return;
  }
  std::memcpy(out + 2 * column, block.scales, 2);
  if (layout.has_min) std::memcpy(out + 64 + 2 * column, block.scales + 2, 2);
}

// Where a block's scales begin, and its super-block.
Byte* BlockAt(const PackedLayout& layout, Byte* panel, int64_t index) {
  return panel + index / layout.super_blocks * layout.super_bytes() + layout.header_bytes +
         index % layout.super_blocks * layout.block_bytes();
}
Byte* HeaderAt(const PackedLayout& layout, Byte* panel, int64_t index) {
  return panel + index / layout.super_blocks * layout.super_bytes();
}

// Panels are packed in stretches of this many columns, all rows of one before the next: what the
// rows write then lies in the first-level cache. Whole blocks of every type.
constexpr int64_t kStretch = 256;

// A part of one row of a source, and the column of the panel it goes to.
struct RowPart {
  int64_t row = 0;
  int column = 0;
  int64_t begin = 0;  // columns of the source, in whole blocks
  int64_t end = 0;
};

// Calls visit(block in the file, group of 32 in it, index of the group in the row) for the part.
template <typename Visit>
void ForEachGroup(const MatrixSource& source, const RowPart& part, const Visit& visit) {
  const BlockFormat& format = FormatOf(source.type);
  const int groups = format.elements / kBlockColumns;
  const Byte* block = reinterpret_cast<const Byte*>(SourceRow(source, part.row)) +
                      part.begin / format.elements * format.bytes;
  for (int64_t index = part.begin / kBlockColumns; index < part.end / kBlockColumns;
       block += format.bytes) {
    for (int g = 0; g < groups; ++g) visit(block, g, index++);
  }
}

void PackIntegers(const MatrixSource& source, const PackedLayout& layout, const RowPart& part,
                  Byte* panel) {
  ForEachGroup(source, part, [&](const Byte* block, int g, int64_t index) {
    ColumnBlock read;
    ReadColumnBlock(source.type, block, g, &read);
    Byte* to = BlockAt(layout, panel, index);
    WriteScales(layout, read, part.column, to);
    WriteWeights(layout, read, part.column, to + layout.scale_bytes);
    if (layout.super_blocks == 1 || g != 0) return;
    Byte* header = HeaderAt(layout, panel, index);
    if (layout.has_min) {
      std::memcpy(header + 2 * part.column, block, 2);
      std::memcpy(header + 64 + 2 * part.column, block + 2, 2);
    } else {
      std::memcpy(header + 2 * part.column, block + 208, 2);  // Q6_K keeps d at the end
    }
  });
}

// Four K values to a word: the high four bits as for a 4-bit format, the low bits by granules.
template <int kLowBits>
void WriteSplitWeights(const ColumnBlock& block, int column, Byte* high, Byte* low) {
  constexpr int kPerGranule = 8 / kLowBits;
  constexpr uint32_t kLow = ((1u << kLowBits) - 1) * 0x01010101u;
  const int lane = 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
  for (int pair = 0; pair < 4; ++pair) {
    const uint32_t even = (block.quads[2 * pair] >> kLowBits) & 0x0f0f0f0fu;
    const uint32_t odd = (block.quads[2 * pair + 1] >> kLowBits) & 0x0f0f0f0fu;
    Store32(high + 128 * pair + lane, even | odd << 4);
  }
  for (int granule = 0; granule < 8 / kPerGranule; ++granule) {
    uint32_t rest = 0;
    for (int g = 0; g < kPerGranule; ++g) {
      rest |= (block.quads[kPerGranule * granule + g] & kLow) << (kLowBits * g);
    }
    Store32(low + SplitLayout::kGranuleBytes * granule + lane, rest);
  }
}

// The largest norm that what the low bits leave of `block` has under one scale, squared.
template <int kLowBits, int kParts>
int ResidualSquared(const ColumnBlock& block) {
  Byte values[32];
  std::memcpy(values, block.quads, sizeof(values));
  int largest = 0;
  for (int part = 0; part < kParts; ++part) {
    int sum = 0;
    for (int k = 0; k < 32 / kParts; ++k) {
      const int residual =
          (values[32 / kParts * part + k] & ((1 << kLowBits) - 1)) - (1 << (kLowBits - 1));
      sum += residual * residual;
    }
    largest = std::max(largest, sum);
  }
  return largest;
}

// `residual` is the largest of the row so far.
template <PackedFormat kFormat>
void PackSplit(const MatrixSource& source, const RowPart& part, Byte* panel, Byte* low_bits,
               int* residual) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  static_assert(8 / kLayout.low_bits == 8 / kLayout.granules);
  ForEachGroup(source, part, [&](const Byte* block, int g, int64_t index) {
    ColumnBlock read;
    ReadColumnBlock(source.type, block, g, &read);
    Byte* scales = panel + kLayout.scales_at(index);
    WriteScales(kLayout.whole, read, part.column, scales);
    WriteSplitWeights<kLayout.low_bits>(read, part.column, scales + kLayout.whole.scale_bytes,
                                        low_bits + index * kLayout.low_bytes());
    *residual = std::max(*residual,
                         ResidualSquared<kLayout.low_bits, kLayout.whole.scales_per_block>(read));
    if (kFormat == PackedFormat::kQ6KSplit && g == 0) {
      std::memcpy(panel + kLayout.header_at(index) + 2 * part.column, block + 208, 2);
    }
  });
}

void WriteResidual(int squared, int column, Byte* panel) {
  const double norm = kResidualUnits * std::sqrt(static_cast<double>(squared));
  panel[column] = static_cast<Byte>(std::ceil(std::max(norm, double{kResidualFloor})));
}

void PackNarrowFloats(const MatrixSource& source, const RowPart& part, Byte* panel) {
  const Byte* from = reinterpret_cast<const Byte*>(SourceRow(source, part.row));
  for (int64_t k = part.begin; k < part.end; ++k) {
    std::memcpy(panel + (k * kPanelColumns + part.column) * 2, from + 2 * k, 2);
  }
}

absl::Status PackFloats(const MatrixSource& source, const RowPart& part, Byte* panel) {
  float values[kStretch];
  const int64_t count = part.end - part.begin;
  DequantizeRow(source.type, SourceRow(source, part.row) + RowBytes(source.type, part.begin), count,
                values);
  for (int64_t i = 0; i < count; ++i) {
    if (source.type != TensorType::kF32 && !std::isfinite(values[i])) {
      return InvalidArgument("{}: row {} has a weight that is not finite", source.name, part.row);
    }
    std::memcpy(panel + ((part.begin + i) * kPanelColumns + part.column) * 4, &values[i], 4);
  }
  return absl::OkStatus();
}

absl::Status PackPart(const MatrixSource& source, PackedFormat format, const PackedLayout& layout,
                      const RowPart& part, PanelAt<std::byte> out, int* residual) {
  Byte* panel = reinterpret_cast<Byte*>(out.panel);
  Byte* low = reinterpret_cast<Byte*>(out.low);
  if (format == PackedFormat::kF32) return PackFloats(source, part, panel);
  if (format == PackedFormat::kQ8Split) {
    PackSplit<PackedFormat::kQ8Split>(source, part, panel, low, residual);
  } else if (format == PackedFormat::kQ6KSplit) {
    PackSplit<PackedFormat::kQ6KSplit>(source, part, panel, low, residual);
  } else if (layout.is_float) {
    PackNarrowFloats(source, part, panel);
  } else {
    PackIntegers(source, layout, part, panel);
  }
  return absl::OkStatus();
}

float HalfAt(const Byte* p) { return HalfToFloat(Load16(p)); }

struct UnpackedBlock {
  float weights[32];
  float scale[2];
  float min = 0;
};

void UnpackWeights(const PackedLayout& layout, const Byte* in, int column, float* weights) {
  const int lane = 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
  const Byte* high = in + layout.weight_bytes;
  for (int k = 0; k < 32; ++k) {
    const int g = k / 4;
    const int at = lane + k % 4;
    int value = 0;
    if (layout.bits == 8) {
      value = in[128 * g + at];
    } else {
      value = (in[128 * (g / 2) + at] >> (4 * (g % 2))) & 15;
    }
    if (layout.bits == 5) value |= ((high[at] >> g) & 1) << 4;
    if (layout.bits == 6) value |= ((high[128 * (g / 4) + at] >> (2 * (g % 4))) & 3) << 4;
    weights[k] = static_cast<float>(value - layout.offset);
  }
}

int SplitWeight(const SplitLayout& layout, const Byte* high, const Byte* low, int lane, int k) {
  const int g = k / 4;
  const int at = lane + k % 4;
  const int per_granule = 8 / layout.granules;
  const int top = high[128 * (g / 2) + at] >> (4 * (g % 2)) & 15;
  const int rest = low[SplitLayout::kGranuleBytes * (g / per_granule) + at] >>
                       (layout.low_bits * (g % per_granule)) &
                   ((1 << layout.low_bits) - 1);
  return (top << layout.low_bits | rest) - layout.whole.offset;
}

UnpackedBlock UnpackSplitBlock(PackedFormat format, const Byte* panel, const Byte* low_bits,
                               int column, int64_t index) {
  const SplitLayout layout = SplitLayoutOf(format);
  const Byte* header = panel + layout.header_at(index);
  const Byte* scales = panel + layout.scales_at(index);
  const Byte* low = low_bits + index * layout.low_bytes();
  const int lane = 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel);
  UnpackedBlock block;
  for (int k = 0; k < 32; ++k) {
    block.weights[k] =
        static_cast<float>(SplitWeight(layout, scales + layout.whole.scale_bytes, low, lane, k));
  }
  for (int part = 0; part < 2; ++part) {
    block.scale[part] =
        format == PackedFormat::kQ6KSplit
            ? HalfAt(header + 2 * column) *
                  static_cast<float>(static_cast<int8_t>(scales[32 * part + column]))
            : HalfAt(scales + 2 * column);
  }
  return block;
}

UnpackedBlock UnpackBlock(PackedFormat format, const Byte* panel, int column, int64_t index) {
  const PackedLayout layout = LayoutOf(format);
  const Byte* header = HeaderAt(layout, const_cast<Byte*>(panel), index);
  const Byte* scales = BlockAt(layout, const_cast<Byte*>(panel), index);
  UnpackedBlock block;
  UnpackWeights(layout, scales + layout.scale_bytes, column, block.weights);
  if (format == PackedFormat::kQ6K) {
    for (int part = 0; part < 2; ++part) {
      block.scale[part] = HalfAt(header + 2 * column) *
                          static_cast<float>(static_cast<int8_t>(scales[32 * part + column]));
    }
    return block;
  }
  if (layout.super_blocks > 1) {
    block.scale[0] = HalfAt(header + 2 * column) * static_cast<float>(scales[column]);
    block.min = -(HalfAt(header + 64 + 2 * column) * static_cast<float>(scales[32 + column]));
  } else {
    block.scale[0] = HalfAt(scales + 2 * column);
    if (layout.has_min) block.min = HalfAt(scales + 64 + 2 * column);
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
    } else {
      value = format == PackedFormat::kF16 ? HalfAt(at) : BFloat16ToFloat(Load16(at));
    }
    out[k] = value * scale;
  }
}

}  // namespace

PackedFormat PackedFormatOf(TensorType type) {
  switch (type) {
    case TensorType::kF16:
      return PackedFormat::kF16;
    case TensorType::kBF16:
      return PackedFormat::kBF16;
    case TensorType::kQ4_0:
      return PackedFormat::kQ4;
    case TensorType::kQ4_1:
      return PackedFormat::kQ4Min;
    case TensorType::kQ5_0:
      return PackedFormat::kQ5;
    case TensorType::kQ5_1:
      return PackedFormat::kQ5Min;
    case TensorType::kQ8_0:
      return PackedFormat::kQ8;
    case TensorType::kQ4_K:
      return PackedFormat::kQ4K;
    case TensorType::kQ5_K:
      return PackedFormat::kQ5K;
    case TensorType::kQ6_K:
      return PackedFormat::kQ6K;
    default:
      return PackedFormat::kF32;
  }
}

PackedFormat PackedFormatOf(const MatrixSource& source) {
  const PackedFormat format = PackedFormatOf(source.type);
  if (!source.searched) return format;
  if (format == PackedFormat::kQ8) return PackedFormat::kQ8Split;
  if (format == PackedFormat::kQ6K) return PackedFormat::kQ6KSplit;
  return format;
}

int64_t PanelBytes(PackedFormat format, int64_t columns) {
  if (IsSplit(format)) return SplitLayoutOf(format).narrow_bytes(columns / kBlockColumns);
  const PackedLayout layout = LayoutOf(format);
  return layout.is_float ? columns * layout.weight_bytes : layout.bytes(columns / kBlockColumns);
}

int64_t LowBytes(PackedFormat format, int64_t columns) {
  return IsSplit(format) ? columns / kBlockColumns * SplitLayoutOf(format).low_bytes() : 0;
}

PackedShape PackedShape::Of(const MatrixSource& source) {
  PackedShape shape;
  shape.format = PackedFormatOf(source);
  shape.panels = (source.rows + kPanelColumns - 1) / kPanelColumns;
  shape.panel_bytes = PanelBytes(shape.format, source.columns);
  shape.low_bytes = LowBytes(shape.format, source.columns);
  return shape;
}

absl::Status FirstFailure::Take() const {
  return std::min_element(failures_.begin(), failures_.end(),
                          [](const Failure& a, const Failure& b) { return a.task < b.task; })
      ->status;
}

absl::Status PackPanel(const MatrixSource& source, int64_t panel, PanelAt<std::byte> out) {
  const PackedFormat format = PackedFormatOf(source);
  const PackedLayout layout = LayoutOf(format);
  const int64_t first = panel * kPanelColumns;
  const int64_t last = std::min(first + kPanelColumns, source.rows);
  for (int64_t row = first; row < last; ++row) {
    FACET_RETURN_IF_ERROR(CheckScales(source, row));
  }
  int residuals[kPanelColumns] = {};
  for (int64_t begin = 0; begin < source.columns; begin += kStretch) {
    const int64_t end = std::min(begin + kStretch, source.columns);
    for (int64_t row = first; row < last; ++row) {
      const int column = static_cast<int>(row - first);
      FACET_RETURN_IF_ERROR(
          PackPart(source, format, layout, {row, column, begin, end}, out, &residuals[column]));
    }
  }
  if (!IsSplit(format)) return absl::OkStatus();
  for (int column = 0; column < last - first; ++column) {
    WriteResidual(residuals[column], column, reinterpret_cast<Byte*>(out.panel));
  }
  return absl::OkStatus();
}

void UnpackRow(PackedFormat format, PanelAt<const std::byte> panel, int column, int64_t columns,
               float scale, float* out) {
  const Byte* from = reinterpret_cast<const Byte*>(panel.panel);
  const Byte* low = reinterpret_cast<const Byte*>(panel.low);
  if (LayoutOf(format).is_float) return UnpackFloats(format, from, column, columns, scale, out);
  const bool has_min = LayoutOf(format).has_min;
  for (int64_t k = 0; k < columns; k += kBlockColumns) {
    const int64_t index = k / kBlockColumns;
    const UnpackedBlock block = IsSplit(format) ? UnpackSplitBlock(format, from, low, column, index)
                                                : UnpackBlock(format, from, column, index);
    for (int i = 0; i < kBlockColumns; ++i) {
      float value = block.weights[i] * block.scale[i / 16];
      if (has_min) value += block.min;
      out[k + i] = value * scale;
    }
  }
}

}  // namespace facet
