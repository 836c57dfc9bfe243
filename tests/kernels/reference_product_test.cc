// The reference device's products against double precision over DequantizeRow().

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/leaf_unit.h"
#include "kernels/reference/reference_device.h"
#include "kernels/sum_tree.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

struct Expected {
  double value = 0;
  double bound = 0;  // of the error that rounding the activations can make
};

// Of an activation's rounding to bfloat16, relative to it.
constexpr double kBfloatError = 0x1p-8;

Expected Multiply(const std::vector<float>& w, const float* x, TensorType type) {
  const bool quantized = HasIntegerProduct(type);
  const double relative = 2e-6 + (type == TensorType::kBF16 ? kBfloatError : 0);
  Expected expected;
  for (size_t begin = 0; begin < w.size(); begin += 32) {
    const size_t end = std::min(w.size(), begin + 32);
    float amax = 0;
    for (size_t k = begin; k < end; ++k) amax = std::max(amax, std::fabs(x[k]));
    for (size_t k = begin; k < end; ++k) {
      expected.value += static_cast<double>(w[k]) * x[k];
      expected.bound += std::fabs(w[k]) * (quantized ? amax / 253.9 : 0.0);
      expected.bound += relative * std::fabs(w[k] * x[k]);
    }
  }
  return expected;
}

class ReferenceProduct : public testing::TestWithParam<TensorType> {};

TEST_P(ReferenceProduct, AgreesWithDoublePrecision) {
  Random random(static_cast<uint64_t>(GetParam()) + 1);
  const TestMatrix matrix = MakeMatrix(GetParam(), 37, 768, 0.1f, random);
  const std::vector<float> x = MakeActivations(5, 768, random);
  const auto device = MakeReferenceDevice();
  const auto loaded = device->LoadMatrix(matrix.source(), nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Floats out = *device->AllocateFloats(5 * 37);
  const Matrix* parts[] = {loaded->get()};
  device->Product(parts, Upload(*device, x), 5, out);
  const std::vector<float> got = Download(*device, out);
  for (int row = 0; row < 37; ++row) {
    const std::vector<float> w = matrix.DequantizedRow(row);
    for (int r = 0; r < 5; ++r) {
      const Expected expected = Multiply(w, &x[r * 768], GetParam());
      EXPECT_NEAR(got[r * 37 + row], expected.value, expected.bound) << row << " " << r;
    }
  }
}

TEST_P(ReferenceProduct, RootsOfTheRanksFinishToTheSumOfOneRank) {
  Random random(static_cast<uint64_t>(GetParam()) + 2);
  constexpr int kLeaves = 6;
  constexpr int kColumns = 256 * kLeaves;
  const TestMatrix whole = MakeMatrix(GetParam(), 9, kColumns, 0.1f, random);
  const std::vector<float> x = MakeActivations(3, kColumns, random);
  const auto device = MakeReferenceDevice();

  std::vector<std::vector<float>> roots;
  for (const auto& [begin, end] : {std::pair(0, 1), std::pair(1, 5), std::pair(5, 6)}) {
    TestMatrix part = whole;
    MatrixSource source = whole.source();
    source.columns = 256 * (end - begin);
    source.data += RowBytes(source.type, 256 * begin);
    const LeafCut cut{kLeaves, begin, CutColumns(source.columns, end - begin, 256)};
    const auto loaded = device->LoadMatrix(source, &cut);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    std::vector<float> slice;
    for (int r = 0; r < 3; ++r) {
      slice.insert(slice.end(), &x[r * kColumns + 256 * begin], &x[r * kColumns + 256 * end]);
    }
    const int count = (*loaded)->root_count();
    const Floats out = *device->AllocateFloats(count * 3 * 9);
    device->ProductRoots(**loaded, Upload(*device, slice), 3, out);
    const std::vector<float> got = Download(*device, out);
    for (int k = 0; k < count; ++k) {
      roots.emplace_back(got.begin() + k * 27, got.begin() + (k + 1) * 27);
    }
  }
  std::vector<const float*> addresses;
  for (const auto& root : roots) addresses.push_back(root.data());
  std::vector<float> finished(27);
  SumTree(kLeaves, {0, 1, 5, 6}).Finish(addresses, 27, finished.data());

  const LeafCut cut{kLeaves, 0, CutColumns(kColumns, kLeaves, 256)};
  const auto loaded = device->LoadMatrix(whole.source(), &cut);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ((*loaded)->root_count(), 1);
  const Floats out = *device->AllocateFloats(27);
  device->ProductRoots(**loaded, Upload(*device, x), 3, out);
  EXPECT_EQ(Download(*device, out), finished);
}

TEST_P(ReferenceProduct, EmbedsDequantizedRows) {
  Random random(static_cast<uint64_t>(GetParam()) + 3);
  TestMatrix matrix = MakeMatrix(GetParam(), 5, 512, 0.1f, random);
  matrix.row_order = {4, 0, 3};
  matrix.rows = 3;
  const auto device = MakeReferenceDevice();
  const auto loaded = device->LoadMatrix(matrix.source(), nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const Floats out = *device->AllocateFloats(2 * 512);
  const int32_t rows[] = {2, 0};
  device->EmbedRows(**loaded, 0, rows, 25.25f, out);
  std::vector<float> expected;
  for (const int row : rows) {
    for (const float value : matrix.DequantizedRow(row)) expected.push_back(value * 25.25f);
  }
  EXPECT_EQ(Download(*device, out), expected);
}

std::string TypeName(const testing::TestParamInfo<TensorType>& info) {
  return std::string(FormatOf(info.param).name);
}
INSTANTIATE_TEST_SUITE_P(Types, ReferenceProduct, testing::ValuesIn(AllTensorTypes()), TypeName);

TEST(ReferenceMatrix, RefusesScalesThatAreNotFinite) {
  const std::pair<TensorType, int> kScales[] = {
      {TensorType::kQ4_0, 0},   {TensorType::kQ4_1, 2},   {TensorType::kQ5_0, 0},
      {TensorType::kQ5_1, 2},   {TensorType::kQ8_0, 0},   {TensorType::kQ2_K, 82},
      {TensorType::kQ3_K, 108}, {TensorType::kQ4_K, 2},   {TensorType::kQ5_K, 0},
      {TensorType::kQ6_K, 208}, {TensorType::kIQ4_NL, 0}, {TensorType::kIQ4_XS, 0}};
  Random random(5);
  const auto device = MakeReferenceDevice();
  for (const auto& [type, offset] : kScales) {
    TestMatrix matrix = MakeMatrix(type, 8, 512, 0.1f, random);
    PoisonScale(&matrix, 6, 1, offset);
    const absl::Status status = device->LoadMatrix(matrix.source(), nullptr).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << FormatOf(type).name;
    EXPECT_THAT(std::string(status.message()),
                testing::AllOf(testing::HasSubstr(matrix.name), testing::HasSubstr("row 6")));
  }
}

TEST(ReferenceMatrix, RefusesWhatCannotBeAMatrix) {
  Random random(6);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ4_0, 4, 64, 0.1f, random);
  const auto device = MakeReferenceDevice();
  const auto code = [&](auto change, const LeafCut* cut) {
    MatrixSource source = matrix.source();
    change(source);
    return device->LoadMatrix(source, cut).status().code();
  };
  using absl::StatusCode;
  const auto same = [](MatrixSource&) {};
  EXPECT_EQ(code(same, nullptr), StatusCode::kOk);
  EXPECT_EQ(code([](MatrixSource& s) { s.type = static_cast<TensorType>(4); }, nullptr),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](MatrixSource& s) { s.columns = 48; }, nullptr), StatusCode::kInvalidArgument);
  EXPECT_EQ(code([](MatrixSource& s) { s.rows = 0; }, nullptr), StatusCode::kInvalidArgument);
  const int32_t order[] = {0, 1, 2};
  EXPECT_EQ(code([&](MatrixSource& s) { s.row_order = order; }, nullptr),
            StatusCode::kInvalidArgument);
  const LeafCut inside_a_block{2, 0, {0, 16, 64}};
  EXPECT_EQ(code(same, &inside_a_block), StatusCode::kInvalidArgument);
  const LeafCut short_of_the_end{2, 0, {0, 32}};
  EXPECT_EQ(code(same, &short_of_the_end), StatusCode::kInvalidArgument);
  const LeafCut too_many{1, 0, {0, 32, 64}};
  EXPECT_EQ(code(same, &too_many), StatusCode::kInvalidArgument);
}

TEST(ReferenceProductOfParts, PutsThemSideBySide) {
  Random random(7);
  const auto device = MakeReferenceDevice();
  const TestMatrix a = MakeMatrix(TensorType::kQ8_0, 5, 64, 0.1f, random);
  const TestMatrix b = MakeMatrix(TensorType::kF16, 3, 64, 0.1f, random);
  const auto matrix_a = *device->LoadMatrix(a.source(), nullptr);
  const auto matrix_b = *device->LoadMatrix(b.source(), nullptr);
  const Floats x = Upload(*device, MakeActivations(2, 64, random));
  const Floats both = *device->AllocateFloats(2 * 8);
  const Floats alone_a = *device->AllocateFloats(2 * 5);
  const Floats alone_b = *device->AllocateFloats(2 * 3);
  const Matrix* parts[] = {matrix_a.get(), matrix_b.get()};
  device->Product(parts, x, 2, both);
  device->Product(std::span(parts, 1), x, 2, alone_a);
  device->Product(std::span(parts + 1, 1), x, 2, alone_b);
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < 8; ++i) {
      const float expected = i < 5 ? alone_a.data[r * 5 + i] : alone_b.data[r * 3 + i - 5];
      EXPECT_EQ(both.data[r * 8 + i], expected);
    }
  }
}

TEST(ReferenceProductOfParts, ANotANumberReachesTheResult) {
  Random random(8);
  const auto device = MakeReferenceDevice();
  const TestMatrix a = MakeMatrix(TensorType::kQ8_0, 4, 64, 0.1f, random);
  const auto matrix = *device->LoadMatrix(a.source(), nullptr);
  std::vector<float> x = MakeFloats(2 * 64, 1, random);
  x[3] = std::nanf("");
  x[64 + 40] = INFINITY;
  const Floats out = *device->AllocateFloats(8);
  const Matrix* parts[] = {matrix.get()};
  device->Product(parts, Upload(*device, x), 2, out);
  for (const float value : Download(*device, out)) EXPECT_FALSE(std::isfinite(value));
}

}  // namespace
}  // namespace facet
