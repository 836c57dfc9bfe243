#include "kernels/cpu/pack.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "kernels/cpu/block_tile.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

using Byte = uint8_t;

// Panels are packed in stretches of this many columns, all rows of one before the next: what the
// rows write then lies in the first-level cache. Whole blocks of every type.
constexpr int64_t kStretch = 256;

// A panel being packed.
struct Panel {
  Byte* bytes;
  Byte* low;                     // of a split format
  int residuals[kPanelColumns];  // of a split format: the largest so far, squared, by column
};

// Where a block of a panel goes.
struct BlockPlace {
  Byte* header;
  Byte* scales;
  Byte* weights;
  Byte* low;
};

template <PackedFormat kFormat>
BlockPlace PlaceOf(const Panel& panel, int64_t index) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  BlockPlace place{};
  if constexpr (IsSplit(kFormat)) {
    constexpr SplitLayout kSplit = SplitLayoutOf(kFormat);
    place.header = panel.bytes + kSplit.header_at(index);
    place.scales = panel.bytes + kSplit.scales_at(index);
    place.low = panel.low + index * kSplit.low_bytes();
  } else {
    place.header = panel.bytes + index / kLayout.super_blocks * kLayout.super_bytes();
    place.scales =
        place.header + kLayout.header_bytes + index % kLayout.super_blocks * kLayout.block_bytes();
  }
  place.weights = place.scales + kLayout.scale_bytes;
  return place;
}

// To 32-bit lanes: `column` is a multiple of a tile's four.
int LaneAt(int column) { return 64 * (column / kHalfPanel) + 4 * (column % kHalfPanel); }

// `bits` of each byte of `value` from `from` on, moved to `to`.
template <int kBits>
Bytes16 MoveBits(Bytes16 value, int from, int to) {
  return _mm_slli_epi16(Bits(value, from, (1 << kBits) - 1), to);
}

// Four bits of each weight from `from` on, groups in pairs.
void WriteNibbles(const BlockTile& tile, int from, int lane, Byte* out) {
  for (int pair = 0; pair < 4; ++pair) {
    Store16Bytes(out + 128 * pair + lane,
                 _mm_or_si128(MoveBits<4>(tile.groups[2 * pair], from, 0),
                              MoveBits<4>(tile.groups[2 * pair + 1], from, 4)));
  }
}

// The high four bits of each weight of a split format: of even groups in the high nibbles.
void WriteHigh(const BlockTile& tile, int from, int lane, Byte* out) {
  for (int pair = 0; pair < 4; ++pair) {
    Store16Bytes(out + 128 * pair + lane,
                 _mm_or_si128(MoveBits<4>(tile.groups[2 * pair], from, 4),
                              MoveBits<4>(tile.groups[2 * pair + 1], from, 0)));
  }
}

// The low four: even groups in the low nibbles, odd ones in the high nibbles of the lane's byte
// before (packed_format.h).
void WriteLowNibbles(const BlockTile& tile, int lane, Byte* out) {
  for (int pair = 0; pair < 4; ++pair) {
    const Bytes16 odd = tile.groups[2 * pair + 1];
    const Bytes16 before = _mm_or_si128(_mm_srli_epi32(odd, 8), _mm_slli_epi32(odd, 24));
    Store16Bytes(out + 128 * pair + lane,
                 _mm_or_si128(MoveBits<4>(tile.groups[2 * pair], 0, 0), MoveBits<4>(before, 0, 4)));
  }
}

// `kBits` bits of each weight from `from` on, of as many groups as go into a byte.
template <int kBits>
void WriteNarrow(const BlockTile& tile, int from, int lane, Byte* out) {
  constexpr int kGroups = 8 / kBits;
  for (int part = 0; part < 8 / kGroups; ++part) {
    Bytes16 all = _mm_setzero_si128();
    for (int i = 0; i < kGroups; ++i) {
      all = _mm_or_si128(all, MoveBits<kBits>(tile.groups[kGroups * part + i], from, kBits * i));
    }
    Store16Bytes(out + 128 * part + lane, all);
  }
}

template <PackedFormat kFormat>
void WriteWeights(const BlockTile& tile, int lane, const BlockPlace& place) {
  constexpr PackedLayout kLayout = LayoutOf(kFormat);
  if constexpr (IsSplit(kFormat)) {
    constexpr int kLowBits = SplitLayoutOf(kFormat).low_bits;
    WriteHigh(tile, kLowBits, lane, place.weights);
    if constexpr (kLowBits == 4) {
      WriteLowNibbles(tile, lane, place.low);
    } else {
      WriteNarrow<kLowBits>(tile, 0, lane, place.low);
    }
  } else if constexpr (kLayout.bits == 8) {
    for (int g = 0; g < 8; ++g) Store16Bytes(place.weights + 128 * g + lane, tile.groups[g]);
  } else {
    WriteNibbles(tile, 0, lane, place.weights);
    if constexpr (kLayout.bits > 4) {
      WriteNarrow<kLayout.bits - 4>(tile, 4, lane, place.weights + kLayout.weight_bytes);
    }
  }
}

// Of each row, what the low bits of the groups [begin, end) leave, as a squared norm.
template <int kLowBits>
void SumResiduals(const BlockTile& tile, int begin, int end, int sums[kTileRows]) {
  const Bytes16 center = _mm_set1_epi16(1 << (kLowBits - 1));
  const Bytes16 low = _mm_set1_epi16((1 << kLowBits) - 1);
  Bytes16 sum = _mm_setzero_si128();  // two of 16 bits for each row
  for (int g = begin; g < end; ++g) {
    for (const int shift : {0, 8}) {
      const Bytes16 bits = _mm_srli_epi16(tile.groups[g], shift);
      const Bytes16 rest = _mm_sub_epi16(_mm_and_si128(bits, low), center);
      sum = _mm_add_epi16(sum, _mm_mullo_epi16(rest, rest));
    }
  }
  Store16Bytes(reinterpret_cast<Byte*>(sums), _mm_madd_epi16(sum, _mm_set1_epi16(1)));
}

template <PackedFormat kFormat>
void NoteResiduals(const BlockTile& tile, int column, Panel* panel) {
  constexpr SplitLayout kLayout = SplitLayoutOf(kFormat);
  constexpr int kGroups = 8 / kLayout.whole.scales_per_block;  // under one scale
  for (int begin = 0; begin < 8; begin += kGroups) {
    int sums[kTileRows];
    SumResiduals<kLayout.low_bits>(tile, begin, begin + kGroups, sums);
    for (int i = 0; i < kTileRows; ++i) {
      int& largest = panel->residuals[column + i];
      largest = std::max(largest, sums[i]);
    }
  }
}

void Store64(Byte* to, uint64_t value) { std::memcpy(to, &value, sizeof(value)); }
void Store32(Byte* to, uint32_t value) { std::memcpy(to, &value, sizeof(value)); }

// Blocks with a scale, and perhaps a minimum, of their own.
template <PackedFormat kFormat>
void WriteScales(const Byte* const block[kTileRows], const TileRows& rows,
                 const BlockPlace& place) {
  Byte* to = place.scales + 2 * rows.column;
  Store64(to, ReadHalves(block, 0) & rows.present);
  if constexpr (LayoutOf(kFormat).has_min) {
    Store64(to + 64, ReadHalves(block, 2) & rows.present);
  }
}

// What the blocks of a super-block share.
template <PackedFormat kFormat>
void WriteHeader(const Byte* const block[kTileRows], const TileRows& rows,
                 const BlockPlace& place) {
  Byte* to = place.header + 2 * rows.column;
  if constexpr (LayoutOf(kFormat).has_min) {
    Store64(to, ReadHalves(block, 0) & rows.present);
    Store64(to + 64, ReadHalves(block, 2) & rows.present);
  } else {
    Store64(to, ReadHalves(block, 208) & rows.present);  // Q6_K keeps it at the end
  }
}

template <TensorType kType, PackedFormat kFormat>
void PackBlock(const Byte* const block[kTileRows], int group, const TileRows& rows,
               const BlockPlace& place, Panel* panel) {
  const BlockTile tile = ReadTile<kType>(block, group, rows.words());
  WriteWeights<kFormat>(tile, LaneAt(rows.column), place);
  if constexpr (IsSplit(kFormat)) NoteResiduals<kFormat>(tile, rows.column, panel);
}

// The columns [begin, end) of a tile, whole blocks of the file.
template <TensorType kType, PackedFormat kFormat>
void PackIntegers(const TileRows& rows, int64_t begin, int64_t end, Panel* panel) {
  constexpr int kGroups = LayoutOf(kFormat).super_blocks;  // of 32 in a block of the file
  const int64_t bytes = FormatOf(kType).bytes;
  for (int64_t index = begin / kBlockColumns; index < end / kBlockColumns; index += kGroups) {
    const Byte* block[kTileRows];
    for (int i = 0; i < kTileRows; ++i) block[i] = rows.row[i] + index / kGroups * bytes;
    if constexpr (kGroups == 1) {
      const BlockPlace place = PlaceOf<kFormat>(*panel, index);
      WriteScales<kFormat>(block, rows, place);
      PackBlock<kType, kFormat>(block, 0, rows, place, panel);
    } else {
      WriteHeader<kFormat>(block, rows, PlaceOf<kFormat>(*panel, index));
      const SuperScales scales = ReadSuperScales<kType>(block);
      for (int g = 0; g < kGroups; ++g) {
        const BlockPlace place = PlaceOf<kFormat>(*panel, index + g);
        Store32(place.scales + rows.column, scales.first[g] & rows.bytes());
        Store32(place.scales + 32 + rows.column, scales.second[g] & rows.bytes());
        PackBlock<kType, kFormat>(block, g, rows, place, panel);
      }
    }
  }
}

// F16: as it is.
void PackHalves(const TileRows& rows, int64_t begin, int64_t end, Panel* panel) {
  const auto out = [&](int64_t k) { return panel->bytes + (k * kPanelColumns + rows.column) * 2; };
  const Bytes16 present = _mm_set1_epi64x(static_cast<int64_t>(rows.present));
  int64_t k = begin;
  for (; k + 8 <= end; k += 8) {
    Bytes16 row[kTileRows];
    for (int i = 0; i < kTileRows; ++i) row[i] = Load16Bytes(rows.row[i] + 2 * k);
    const Bytes16 low01 = _mm_unpacklo_epi16(row[0], row[1]);
    const Bytes16 low23 = _mm_unpacklo_epi16(row[2], row[3]);
    const Bytes16 high01 = _mm_unpackhi_epi16(row[0], row[1]);
    const Bytes16 high23 = _mm_unpackhi_epi16(row[2], row[3]);
    const Bytes16 pairs[] = {_mm_unpacklo_epi32(low01, low23), _mm_unpackhi_epi32(low01, low23),
                             _mm_unpacklo_epi32(high01, high23),
                             _mm_unpackhi_epi32(high01, high23)};
    for (int pair = 0; pair < 4; ++pair) {
      const Bytes16 two = _mm_and_si128(pairs[pair], present);
      _mm_storel_epi64(reinterpret_cast<Bytes16*>(out(k + 2 * pair)), two);
      _mm_storel_epi64(reinterpret_cast<Bytes16*>(out(k + 2 * pair + 1)), _mm_srli_si128(two, 8));
    }
  }
  for (; k < end; ++k) {
    const Byte* at[kTileRows];
    for (int i = 0; i < kTileRows; ++i) at[i] = rows.row[i] + 2 * k;
    Store64(out(k), ReadHalves(at, 0) & rows.present);
  }
}

// BF16: as it is, the two of a pair of K side by side.
void PackPairs(const TileRows& rows, int64_t begin, int64_t end, Panel* panel) {
  const auto out = [&](int64_t k) {
    return panel->bytes + (k / 2 * kPanelColumns + rows.column) * 4;
  };
  int64_t k = begin;
  for (; k + 8 <= end; k += 8) {
    Bytes16 row[kTileRows], columns[4];
    for (int i = 0; i < kTileRows; ++i) row[i] = Load16Bytes(rows.row[i] + 2 * k);
    Transpose4(row, columns);
    for (int i = 0; i < 4; ++i) {
      Store16Bytes(out(k + 2 * i), _mm_and_si128(columns[i], rows.words()));
    }
  }
  for (; k < end; ++k) {
    for (int i = 0; i < rows.count(); ++i) {
      std::memcpy(out(k) + 4 * i + 2 * (k % 2), rows.row[i] + 2 * k, sizeof(uint16_t));
    }
  }
}

// Any type, as F32.
void WriteFloats(const float values[kTileRows][kStretch], const TileRows& rows, int64_t begin,
                 int64_t end, Panel* panel) {
  const auto out = [&](int64_t k) { return panel->bytes + (k * kPanelColumns + rows.column) * 4; };
  int64_t k = begin;
  for (; k + 4 <= end; k += 4) {
    Bytes16 row[kTileRows], columns[4];
    for (int i = 0; i < kTileRows; ++i) {
      row[i] = Load16Bytes(reinterpret_cast<const Byte*>(&values[i][k - begin]));
    }
    Transpose4(row, columns);
    for (int i = 0; i < 4; ++i) Store16Bytes(out(k + i), _mm_and_si128(columns[i], rows.words()));
  }
  for (; k < end; ++k) {
    for (int i = 0; i < rows.count(); ++i) {
      std::memcpy(out(k) + 4 * i, &values[i][k - begin], sizeof(float));
    }
  }
}

// `values` may have some zeros after what is asked about.
absl::Status CheckFinite(const MatrixSource& source, int64_t row, const float values[kStretch]) {
  if (source.type == TensorType::kF32) return absl::OkStatus();  // the file's own affair
  const Bytes16 exponent = _mm_set1_epi32(0x7f800000);
  Bytes16 any = _mm_setzero_si128();  // an infinity's exponent is all ones: one more carries over
  for (int64_t i = 0; i < kStretch; i += 4) {
    const Bytes16 bits = Load16Bytes(reinterpret_cast<const Byte*>(values + i));
    any = _mm_or_si128(any, _mm_add_epi32(_mm_and_si128(bits, exponent), _mm_set1_epi32(1 << 23)));
  }
  if (_mm_movemask_ps(_mm_castsi128_ps(any)) == 0) return absl::OkStatus();
  return InvalidArgument("{}: row {} has a weight that is not finite", source.name, row);
}

// `first` is the row that the tile begins with.
absl::Status PackFloats(const MatrixSource& source, int64_t first, const TileRows& rows,
                        int64_t begin, int64_t end, Panel* panel) {
  float values[kTileRows][kStretch] = {};
  const int64_t offset = RowBytes(source.type, begin);
  for (int i = 0; i < rows.count(); ++i) {
    DequantizeRow(source.type, reinterpret_cast<const std::byte*>(rows.row[i]) + offset,
                  end - begin, values[i]);
    FACET_RETURN_IF_ERROR(CheckFinite(source, first + i, values[i]));
  }
  WriteFloats(values, rows, begin, end, panel);
  return absl::OkStatus();
}

using PackTile = void (*)(const TileRows& rows, int64_t begin, int64_t end, Panel* panel);

// Null for what becomes F32.
PackTile PackerOf(const MatrixSource& source, PackedFormat format) {
  switch (source.type) {
    case TensorType::kF16:
      return PackHalves;
    case TensorType::kBF16:
      return PackPairs;
    case TensorType::kQ4_0:
      return PackIntegers<TensorType::kQ4_0, PackedFormat::kQ4>;
    case TensorType::kQ4_1:
      return PackIntegers<TensorType::kQ4_1, PackedFormat::kQ4Min>;
    case TensorType::kQ5_0:
      return PackIntegers<TensorType::kQ5_0, PackedFormat::kQ5>;
    case TensorType::kQ5_1:
      return PackIntegers<TensorType::kQ5_1, PackedFormat::kQ5Min>;
    case TensorType::kQ8_0:
      return IsSplit(format) ? PackIntegers<TensorType::kQ8_0, PackedFormat::kQ8Split>
                             : PackIntegers<TensorType::kQ8_0, PackedFormat::kQ8>;
    case TensorType::kQ4_K:
      return PackIntegers<TensorType::kQ4_K, PackedFormat::kQ4K>;
    case TensorType::kQ5_K:
      return PackIntegers<TensorType::kQ5_K, PackedFormat::kQ5K>;
    case TensorType::kQ6_K:
      return IsSplit(format) ? PackIntegers<TensorType::kQ6_K, PackedFormat::kQ6KSplit>
                             : PackIntegers<TensorType::kQ6_K, PackedFormat::kQ6K>;
    default:
      return nullptr;
  }
}

// The first of the rows [first, last), as many as a tile has.
TileRows RowsOf(const MatrixSource& source, int64_t first, int64_t last, int column) {
  TileRows rows{.column = column};
  const auto count = static_cast<int>(std::min<int64_t>(kTileRows, last - first));
  for (int i = 0; i < kTileRows; ++i) {
    rows.row[i] = reinterpret_cast<const Byte*>(SourceRow(source, i < count ? first + i : first));
  }
  rows.present = ~uint64_t{0} >> (16 * (kTileRows - count));
  return rows;
}

// Of many rows that are read by turns the processor does not see how each goes on. Where there are
// scales, looking at them from end to end has shown it.
void FetchRow(const MatrixSource& source, int64_t row) {
  constexpr int64_t kLine = 64;
  const std::byte* from = SourceRow(source, row);
  for (int64_t at = 0; at < RowBytes(source.type, source.columns); at += kLine) {
    __builtin_prefetch(from + at);
  }
}

void WriteResidual(int squared, int column, Byte* panel) {
  const double norm = kResidualUnits * std::sqrt(static_cast<double>(squared));
  panel[column] = static_cast<Byte>(std::ceil(std::max(norm, double{kResidualFloor})));
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
  if (format == PackedFormat::kBF16) columns += columns % 2;
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
  const PackTile pack = PackerOf(source, format);
  const bool has_scales = FormatOf(source.type).elements > 1;
  const int64_t first = panel * kPanelColumns;
  const int64_t last = std::min(first + kPanelColumns, source.rows);
  for (int64_t row = first; row < last; ++row) {
    FACET_RETURN_IF_ERROR(CheckScales(source, row));
    if (!has_scales) FetchRow(source, row);
  }
  Panel target{reinterpret_cast<Byte*>(out.panel), reinterpret_cast<Byte*>(out.low), {}};
  for (int64_t begin = 0; begin < source.columns; begin += kStretch) {
    const int64_t end = std::min(begin + kStretch, source.columns);
    for (int64_t row = first; row < last; row += kTileRows) {
      const TileRows rows = RowsOf(source, row, last, static_cast<int>(row - first));
      if (pack != nullptr) {
        pack(rows, begin, end, &target);
      } else {
        FACET_RETURN_IF_ERROR(PackFloats(source, row, rows, begin, end, &target));
      }
    }
  }
  if (!IsSplit(format)) return absl::OkStatus();
  for (int column = 0; column < last - first; ++column) {
    WriteResidual(target.residuals[column], column, target.bytes);
  }
  return absl::OkStatus();
}

}  // namespace facet
