#include "kernels/cpu/pack.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/status.h"
#include "kernels/cpu/processor.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

using Byte = uint8_t;

// Panels are packed in stretches of this many columns, all rows of one before the next: what the
// rows write then lies in the first-level cache. Whole blocks of every type.
constexpr int64_t kStretch = 256;

// Halves and floats are packed by so many rows, with the instructions that every x86-64 has.
constexpr int kQuad = 4;

using Bytes16 = __m128i;

Bytes16 Load16Bytes(const Byte* from) {
  return _mm_loadu_si128(reinterpret_cast<const Bytes16*>(from));
}
void Store16Bytes(Byte* to, Bytes16 value) {
  _mm_storeu_si128(reinterpret_cast<Bytes16*>(to), value);
}

// Four rows of a panel. One at a matrix's end may lack some: these repeat the first one, and what
// they give is masked out.
struct Quad {
  const Byte* row[kQuad] = {};      // their first bytes
  int column = 0;                   // of the panel, for the first of them
  uint64_t present = ~uint64_t{0};  // 16 bits of each row

  int count() const { return std::popcount(present) / 16; }
  Bytes16 words() const {  // 32 bits of each
    const Bytes16 halves = _mm_cvtsi64_si128(static_cast<int64_t>(present));
    return _mm_unpacklo_epi16(halves, halves);
  }
};

void Store64(Byte* to, uint64_t value) { std::memcpy(to, &value, sizeof(value)); }

// rows[i] and columns[i] are four words of 32 bits: the matrix of them, transposed.
void Transpose4(const Bytes16 rows[kQuad], Bytes16 columns[4]) {
  const Bytes16 low01 = _mm_unpacklo_epi32(rows[0], rows[1]);
  const Bytes16 low23 = _mm_unpacklo_epi32(rows[2], rows[3]);
  const Bytes16 high01 = _mm_unpackhi_epi32(rows[0], rows[1]);
  const Bytes16 high23 = _mm_unpackhi_epi32(rows[2], rows[3]);
  columns[0] = _mm_unpacklo_epi64(low01, low23);
  columns[1] = _mm_unpackhi_epi64(low01, low23);
  columns[2] = _mm_unpacklo_epi64(high01, high23);
  columns[3] = _mm_unpackhi_epi64(high01, high23);
}

// Two bytes at `offset` of each row.
uint64_t ReadHalves(const Quad& quad, int64_t offset) {
  uint64_t all = 0;
  for (int i = 0; i < kQuad; ++i) {
    uint16_t half;
    std::memcpy(&half, quad.row[i] + offset, sizeof(half));
    all |= uint64_t{half} << (16 * i);
  }
  return all;
}

// F16: as it is.
void PackHalves(const Quad& rows, int64_t begin, int64_t end, Byte* panel) {
  const auto out = [&](int64_t k) { return panel + (k * kPanelColumns + rows.column) * 2; };
  const Bytes16 present = _mm_set1_epi64x(static_cast<int64_t>(rows.present));
  int64_t k = begin;
  for (; k + 8 <= end; k += 8) {
    Bytes16 row[kQuad];
    for (int i = 0; i < kQuad; ++i) row[i] = Load16Bytes(rows.row[i] + 2 * k);
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
    Store64(out(k), ReadHalves(rows, 2 * k) & rows.present);
  }
}

// Any type, as F32.
void WriteFloats(const float values[kQuad][kStretch], const Quad& rows, int64_t begin, int64_t end,
                 Byte* panel) {
  const auto out = [&](int64_t k) { return panel + (k * kPanelColumns + rows.column) * 4; };
  int64_t k = begin;
  for (; k + 4 <= end; k += 4) {
    Bytes16 row[kQuad], columns[4];
    for (int i = 0; i < kQuad; ++i) {
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
  return InvalidArgument("{}: row {} has a weight that is not finite", source.name,
                         source.first_row + row);
}

// `first` is the row that the quad begins with.
absl::Status PackFloats(const MatrixSource& source, int64_t first, const Quad& rows, int64_t begin,
                        int64_t end, Byte* panel) {
  float values[kQuad][kStretch] = {};
  const int64_t offset = RowBytes(source.type, begin);
  for (int i = 0; i < rows.count(); ++i) {
    DequantizeRow(source.type, reinterpret_cast<const std::byte*>(rows.row[i]) + offset,
                  end - begin, values[i]);
    FACET_RETURN_IF_ERROR(CheckFinite(source, first + i, values[i]));
  }
  WriteFloats(values, rows, begin, end, panel);
  return absl::OkStatus();
}

const Byte* RowOf(const MatrixSource& source, int64_t row) {
  return reinterpret_cast<const Byte*>(SourceRow(source, row));
}

// The first of the rows [first, last), as many as a quad has.
Quad QuadOf(const MatrixSource& source, int64_t first, int64_t last, int column) {
  Quad rows{.column = column};
  const auto count = static_cast<int>(std::min<int64_t>(kQuad, last - first));
  for (int i = 0; i < kQuad; ++i) rows.row[i] = RowOf(source, i < count ? first + i : first);
  rows.present = ~uint64_t{0} >> (16 * (kQuad - count));
  return rows;
}

absl::Status PackByQuads(const MatrixSource& source, int64_t first, int64_t last, Byte* panel) {
  const bool halves = source.type == TensorType::kF16;
  for (int64_t begin = 0; begin < source.columns; begin += kStretch) {
    const int64_t end = std::min(begin + kStretch, source.columns);
    for (int64_t row = first; row < last; row += kQuad) {
      const Quad rows = QuadOf(source, row, last, static_cast<int>(row - first));
      if (halves) {
        PackHalves(rows, begin, end, panel);
      } else {
        FACET_RETURN_IF_ERROR(PackFloats(source, row, rows, begin, end, panel));
      }
    }
  }
  return absl::OkStatus();
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

absl::Status PackPanel(const MatrixSource& source, int64_t panel, PanelAt<std::byte> out,
                       FindPacker find_packer) {
  const PackedFormat format = PackedFormatOf(source);
  const bool has_scales = FormatOf(source.type).elements > 1;
  const int64_t first = panel * kPanelColumns;
  const int64_t last = std::min(first + kPanelColumns, source.rows);
  for (int64_t row = first; row < last; ++row) {
    FACET_RETURN_IF_ERROR(CheckScales(source, row));
    if (!has_scales) FetchRow(source, row);
  }
  const PackColumns pack = find_packer(format);
  if (pack == nullptr) {
    return PackByQuads(source, first, last, reinterpret_cast<Byte*>(out.panel));
  }
  PackArgs args;
  args.present = static_cast<int>(last - first);
  for (int i = 0; i < kPanelColumns; ++i) {
    args.rows[i] = RowOf(source, i < args.present ? first + i : first);
  }
  args.block_bytes = FormatOf(source.type).bytes;
  args.panel = reinterpret_cast<Byte*>(out.panel);
  args.low = reinterpret_cast<Byte*>(out.low);
  for (args.begin = 0; args.begin < source.columns; args.begin = args.end) {
    args.end = std::min(args.begin + kStretch, source.columns);
    pack(&args);
  }
  if (!IsSplit(format)) return absl::OkStatus();
  for (int column = 0; column < args.present; ++column) {
    WriteResidual(args.residuals[column], column, args.panel);
  }
  return absl::OkStatus();
}

FindPacker WidestPackerOf() {
  // Once: a virtual machine takes microseconds to say what its processor has.
  static const FindPacker widest = HasAvx512() ? avx512::PackerOf : avx2::PackerOf;
  return widest;
}

}  // namespace facet
