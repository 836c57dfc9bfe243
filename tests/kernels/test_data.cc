#include "tests/kernels/test_data.h"

#include <cstring>

#include "base/check.h"
#include "base/float16.h"

namespace facet {
namespace {

constexpr TensorType kTypes[] = {TensorType::kF32,  TensorType::kF16,    TensorType::kBF16,
                                 TensorType::kQ4_0, TensorType::kQ4_1,   TensorType::kQ5_0,
                                 TensorType::kQ5_1, TensorType::kQ8_0,   TensorType::kQ2_K,
                                 TensorType::kQ3_K, TensorType::kQ4_K,   TensorType::kQ5_K,
                                 TensorType::kQ6_K, TensorType::kIQ4_NL, TensorType::kIQ4_XS};

struct ScaleField {
  int offset;
  float size;  // relative to a weight: scales of K types are multiplied by up to 63 or 128
};

std::vector<ScaleField> ScaleFields(TensorType type) {
  switch (type) {
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
      return {{0, 0.1f}, {2, -1.0f}};
    case TensorType::kQ2_K:
      return {{80, 0.05f}, {82, 0.05f}};
    case TensorType::kQ3_K:
      return {{108, 0.02f}};
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
      return {{0, 0.002f}, {2, 0.02f}};
    case TensorType::kQ6_K:
      return {{208, 0.0005f}};
    case TensorType::kIQ4_XS:
      return {{0, 0.0005f}};
    default:
      return {{0, 0.05f}};
  }
}

float Normal(Random& random) { return std::normal_distribution<float>()(random); }

void FillFloats(TestMatrix* matrix, float scale, Random& random) {
  const int size = FormatOf(matrix->type).bytes;
  for (size_t i = 0; i < matrix->bytes.size(); i += size) {
    const float value = scale * Normal(random);
    const uint16_t narrow =
        matrix->type == TensorType::kF16 ? FloatToHalf(value) : FloatToBFloat16(value);
    const void* from = matrix->type == TensorType::kF32 ? static_cast<const void*>(&value)
                                                        : static_cast<const void*>(&narrow);
    std::memcpy(&matrix->bytes[i], from, size);
  }
}

void FillBlocks(TestMatrix* matrix, float scale, Random& random) {
  for (std::byte& byte : matrix->bytes) byte = static_cast<std::byte>(random());
  const std::vector<ScaleField> fields = ScaleFields(matrix->type);
  const BlockFormat& format = FormatOf(matrix->type);
  for (size_t block = 0; block < matrix->bytes.size(); block += format.bytes) {
    for (const ScaleField& field : fields) {
      uint16_t half = FloatToHalf(scale * field.size * (1 + 0.3f * Normal(random)));
      if (random() % 64 == 0) half = static_cast<uint16_t>(random() % 1024);  // zero, subnormal
      if (random() % 16 == 0) half ^= 0x8000u;
      std::memcpy(&matrix->bytes[block + field.offset], &half, sizeof(half));
    }
  }
}

}  // namespace

std::span<const TensorType> AllTensorTypes() { return kTypes; }

MatrixSource TestMatrix::source() const {
  return {name, type, rows, columns, bytes.data(), RowBytes(type, columns), row_order};
}

std::vector<float> TestMatrix::DequantizedRow(int64_t row) const {
  std::vector<float> out(columns);
  const int64_t from = row_order.empty() ? row : row_order[row];
  DequantizeRow(type, bytes.data() + from * RowBytes(type, columns), columns, out.data());
  return out;
}

TestMatrix MakeMatrix(TensorType type, int64_t rows, int64_t columns, float scale, Random& random) {
  TestMatrix matrix{"blk.7.test.weight", type, rows, columns, {}, {}};
  matrix.bytes.resize(rows * RowBytes(type, columns));
  if (FormatOf(type).elements == 1) {
    FillFloats(&matrix, scale, random);
  } else {
    FillBlocks(&matrix, scale, random);
  }
  return matrix;
}

void PoisonScale(TestMatrix* matrix, int64_t row, int64_t block, int offset) {
  const uint16_t infinity = 0x7c00;
  std::memcpy(&matrix->bytes[row * RowBytes(matrix->type, matrix->columns) +
                             block * FormatOf(matrix->type).bytes + offset],
              &infinity, sizeof(infinity));
}

std::vector<float> MakeActivations(int64_t rows, int64_t columns, Random& random) {
  std::vector<float> x = MakeFloats(rows * columns, 1, random);
  for (int64_t r = 0; r < rows; ++r) {
    if (random() % 3 == 0) x[r * columns + random() % columns] = 40 * Normal(random);
  }
  for (size_t begin = 0; begin + 32 <= x.size(); begin += 32) {
    if (random() % 40 == 0) std::fill_n(x.begin() + begin, 32, 0.0f);
  }
  return x;
}

std::vector<float> MakeFloats(int64_t size, float scale, Random& random) {
  std::vector<float> x(size);
  for (float& value : x) value = scale * Normal(random);
  return x;
}

std::vector<int64_t> CutColumns(int64_t columns, int leaves, int64_t unit) {
  std::vector<int64_t> starts;
  for (int i = 0; i <= leaves; ++i) starts.push_back(i * (columns / unit) / leaves * unit);
  starts.back() = columns;
  return starts;
}

Floats Upload(Device& device, std::span<const float> values) {
  auto array = device.AllocateFloats(static_cast<int64_t>(values.size()));
  FACET_CHECK(array.ok());
  device.CopyIn(values, *array);
  return *array;
}

std::vector<float> Download(Device& device, Floats array) {
  std::vector<float> values(array.size);
  device.Synchronize();
  device.CopyOut(array, values);
  return values;
}

std::vector<float> RunGate(Device& device, Activation activation, std::span<const float> gate,
                           std::span<const float> up) {
  const auto load = [&](std::span<const float> weights) {
    MatrixSource source;
    source.name = "gate";
    source.rows = static_cast<int64_t>(weights.size());
    source.columns = 1;
    source.data = reinterpret_cast<const std::byte*>(weights.data());
    source.row_stride = sizeof(float);
    return *device.LoadMatrix(source, nullptr);
  };
  const std::vector<float> one = {1.0f};
  const Floats out = *device.AllocateFloats(static_cast<int64_t>(gate.size()));
  device.GatedProduct(activation, *load(gate), *load(up), Upload(device, one), 1, out);
  return Download(device, out);
}

}  // namespace facet
