#include "kernels/reference/reference_matrix.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/float16.h"
#include "base/status.h"
#include "kernels/canonical_math.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

using Byte = uint8_t;

float LoadHalf(const Byte* bytes) {
  uint16_t half;
  std::memcpy(&half, bytes, sizeof(half));
  return HalfToFloat(half);
}

// 32 weights as the arithmetic table of kernels/README.md wants them.
struct WeightBlock {
  int w[32];
  float scale[2];  // of the first and the last 16
  float min = 0;
  bool halves = false;  // two dot products of 16
  bool has_min = false;
};

// The nibble of element i of a legacy block.
int Nibble(const Byte* qs, int i) { return i < 16 ? qs[i] & 15 : qs[i - 16] >> 4; }
// The bit of element i in a legacy block's qh.
int FifthBit(const Byte* qh, int i) { return ((qh[i / 8] >> (i % 8)) & 1) << 4; }

WeightBlock ReadQ4(const Byte* block, bool has_min) {
  WeightBlock out;
  out.scale[0] = LoadHalf(block);
  out.has_min = has_min;
  if (has_min) out.min = LoadHalf(block + 2);
  const Byte* qs = block + (has_min ? 4 : 2);
  for (int i = 0; i < 32; ++i) out.w[i] = Nibble(qs, i) - (has_min ? 0 : 8);
  return out;
}

WeightBlock ReadQ5(const Byte* block, bool has_min) {
  WeightBlock out;
  out.scale[0] = LoadHalf(block);
  out.has_min = has_min;
  if (has_min) out.min = LoadHalf(block + 2);
  const Byte* qh = block + (has_min ? 4 : 2);
  for (int i = 0; i < 32; ++i) {
    out.w[i] = (Nibble(qh + 4, i) | FifthBit(qh, i)) - (has_min ? 0 : 16);
  }
  return out;
}

WeightBlock ReadQ8(const Byte* block) {
  WeightBlock out;
  out.scale[0] = LoadHalf(block);
  for (int i = 0; i < 32; ++i) out.w[i] = static_cast<int8_t>(block[2 + i]);
  return out;
}

// Group `g` of eight of a Q4_K or Q5_K super-block.
WeightBlock ReadQ45K(const Byte* block, int g, bool fifth_bit) {
  const Byte* s = block + 4;
  const int scale = g < 4 ? s[g] & 63 : (s[g + 4] & 15) | ((s[g - 4] >> 6) << 4);
  const int min = g < 4 ? s[g + 4] & 63 : (s[g + 4] >> 4) | ((s[g] >> 6) << 4);
  WeightBlock out;
  out.scale[0] = LoadHalf(block) * static_cast<float>(scale);
  out.min = -(LoadHalf(block + 2) * static_cast<float>(min));
  out.has_min = true;
  const Byte* qh = block + 16;
  const Byte* qs = (fifth_bit ? block + 48 : block + 16) + 32 * (g / 2);
  for (int i = 0; i < 32; ++i) {
    out.w[i] = g % 2 == 0 ? qs[i] & 15 : qs[i] >> 4;
    if (fifth_bit) out.w[i] |= ((qh[i] >> g) & 1) << 4;
  }
  return out;
}

// Group `g` of eight of a Q6_K super-block.
WeightBlock ReadQ6K(const Byte* block, int g) {
  const Byte* ql = block + 64 * (g / 4) + 32 * (g % 2);
  const Byte* qh = block + 128 + 32 * (g / 4);
  const Byte* scales = block + 192 + 2 * g;
  const float d = LoadHalf(block + 208);
  WeightBlock out;
  out.halves = true;
  for (int i = 0; i < 2; ++i) {
    out.scale[i] = d * static_cast<float>(static_cast<int8_t>(scales[i]));
  }
  for (int i = 0; i < 32; ++i) {
    const int low = g % 4 < 2 ? ql[i] & 15 : ql[i] >> 4;
    const int high = (qh[i] >> (2 * (g % 4))) & 3;
    out.w[i] = (low | high << 4) - 32;
  }
  return out;
}

// Block `index` of 32 columns of a row. REQUIRES: HasIntegerProduct(type).
WeightBlock ReadBlock(TensorType type, const std::byte* row, int64_t index) {
  const BlockFormat& format = FormatOf(type);
  const int groups = format.elements / kBlockColumns;
  const Byte* block = reinterpret_cast<const Byte*>(row) + index / groups * int64_t{format.bytes};
  const int g = static_cast<int>(index % groups);
  switch (type) {
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
      return ReadQ4(block, type == TensorType::kQ4_1);
    case TensorType::kQ5_0:
    case TensorType::kQ5_1:
      return ReadQ5(block, type == TensorType::kQ5_1);
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
      return ReadQ45K(block, g, type == TensorType::kQ5_K);
    case TensorType::kQ6_K:
      return ReadQ6K(block, g);
    default:
      return ReadQ8(block);
  }
}

float DotBlock(const WeightBlock& weights, const int8_t* q, int begin, int end) {
  int dot = 0;
  for (int i = begin; i < end; ++i) dot += weights.w[i] * q[i];
  return static_cast<float>(dot);
}

float AddBlock(const WeightBlock& weights, const int8_t* q, float scale, float scaled_sum,
               float acc) {
  if (weights.halves) {
    acc = std::fma(DotBlock(weights, q, 0, 16), weights.scale[0] * scale, acc);
    return std::fma(DotBlock(weights, q, 16, 32), weights.scale[1] * scale, acc);
  }
  acc = std::fma(DotBlock(weights, q, 0, 32), weights.scale[0] * scale, acc);
  return weights.has_min ? std::fma(weights.min, scaled_sum, acc) : acc;
}

void QuantizeBlock(const float* x, int8_t* q, float* scale, float* scaled_sum) {
  // The largest magnitude as an integer, so that a NaN counts as larger than everything and
  // reaches the scale.
  uint32_t largest = 0;
  for (int i = 0; i < kBlockColumns; ++i) {
    const uint32_t magnitude = std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu;
    if (magnitude > largest) largest = magnitude;
  }
  const float amax = std::bit_cast<float>(largest);
  const float inverse = 127.0f / amax;
  const bool usable = inverse > 0 && inverse < std::numeric_limits<float>::infinity();
  int sum = 0;
  for (int i = 0; i < kBlockColumns; ++i) {
    q[i] = static_cast<int8_t>(usable ? std::nearbyint(x[i] * inverse) : 0.0f);
    sum += q[i];
  }
  *scale = amax / 127.0f;
  *scaled_sum = *scale * static_cast<float>(sum);
}

// The columns [begin, end) of a leaf, in pairs; a missing last one counts as zero.
float MultiplyPairs(const float* weights, const float* x, int64_t begin, int64_t end) {
  float acc = 0;
  for (int64_t k = begin; k < end; k += 2) {
    const bool both = k + 1 < end;
    acc = canonical::FlushedFma(both ? weights[k + 1] : 0.0f, both ? x[k + 1] : 0.0f, acc);
    acc = canonical::FlushedFma(weights[k], x[k], acc);
  }
  return acc;
}

// One row of weights; one of the two is filled.
struct DecodedRow {
  std::vector<WeightBlock> blocks;
  std::vector<float> floats;
  bool pairs = false;  // the floats are bfloat16
};

// The product of the weights with row `x_row`, over the columns [begin, end).
float MultiplyLeaf(const DecodedRow& weights, const QuantizedRows& x, int x_row, int64_t begin,
                   int64_t end) {
  const int64_t first = x_row * x.columns;
  if (weights.pairs) return MultiplyPairs(weights.floats.data(), &x.rounded[first], begin, end);
  float acc = 0;
  if (weights.blocks.empty()) {
    for (int64_t k = begin; k < end; ++k) acc = std::fma(weights.floats[k], x.x[first + k], acc);
    return acc;
  }
  for (int64_t k = begin; k < end; k += kBlockColumns) {
    const int64_t block = (first + k) / kBlockColumns;
    acc = AddBlock(weights.blocks[k / kBlockColumns], &x.q[block * kBlockColumns], x.scale[block],
                   x.scaled_sum[block], acc);
  }
  return acc;
}

// The tree of kernels/sum_tree.h over the leaves [begin, end).
float SumLeaves(const DecodedRow& weights, const QuantizedRows& x, int x_row,
                const std::vector<int64_t>& starts, int begin, int end) {
  if (end - begin == 1) return MultiplyLeaf(weights, x, x_row, starts[begin], starts[end]);
  const int split = SplitPoint(begin, end);
  return SumLeaves(weights, x, x_row, starts, begin, split) +
         SumLeaves(weights, x, x_row, starts, split, end);
}

}  // namespace

QuantizedRows QuantizeRows(const float* x, int rows, int64_t columns) {
  QuantizedRows out;
  out.columns = columns;
  out.x.assign(x, x + rows * columns);
  for (const float value : out.x) {
    out.rounded.push_back(BFloat16ToFloat(FloatToBFloat16(value)));
  }
  if (columns % kBlockColumns != 0) return out;  // then no integer product will ask
  const size_t blocks = out.x.size() / kBlockColumns;
  out.q.resize(out.x.size());
  out.scale.resize(blocks);
  out.scaled_sum.resize(blocks);
  for (size_t i = 0; i < blocks; ++i) {
    QuantizeBlock(&out.x[i * kBlockColumns], &out.q[i * kBlockColumns], &out.scale[i],
                  &out.scaled_sum[i]);
  }
  return out;
}

absl::StatusOr<std::unique_ptr<ReferenceMatrix>> ReferenceMatrix::Load(const MatrixSource& source,
                                                                       const LeafCut* cut) {
  FACET_RETURN_IF_ERROR(CheckSource(source, cut));
  auto matrix = std::make_unique<ReferenceMatrix>();
  matrix->type_ = source.type;
  matrix->rows_ = source.rows;
  matrix->columns_ = source.columns;
  matrix->row_bytes_ = RowBytes(source.type, source.columns);
  matrix->leaves_ = MakeLeafRoots(source.columns, cut);
  matrix->bytes_.resize(static_cast<size_t>(matrix->rows_ * matrix->row_bytes_));
  for (int64_t row = 0; row < source.rows; ++row) {
    FACET_RETURN_IF_ERROR(CheckScales(source, row));
    std::memcpy(matrix->bytes_.data() + row * matrix->row_bytes_, SourceRow(source, row),
                static_cast<size_t>(matrix->row_bytes_));
  }
  return matrix;
}

void ReferenceMatrix::Dequantize(int64_t row, float* out) const {
  DequantizeRow(type_, Row(row), columns_, out);
}

void ReferenceMatrix::MultiplyRow(int64_t row, const QuantizedRows& x, int x_rows, int root,
                                  float* out, int64_t out_stride) const {
  DecodedRow weights;
  if (integer_product()) {
    for (int64_t i = 0; i < columns_ / kBlockColumns; ++i) {
      weights.blocks.push_back(ReadBlock(type_, Row(row), i));
    }
  } else {
    weights.floats.resize(static_cast<size_t>(columns_));
    Dequantize(row, weights.floats.data());
    weights.pairs = type_ == TensorType::kBF16;
  }
  const std::vector<int>& root_begin = leaves_.root_begin;
  for (int r = 0; r < x_rows; ++r) {
    out[r * out_stride] =
        SumLeaves(weights, x, r, leaves_.starts, root_begin[root], root_begin[root + 1]);
  }
}

}  // namespace facet
