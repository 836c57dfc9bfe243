#include "checkpoint/block_formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/gguf.h"

namespace facet {
namespace {

const TensorType kAllTypes[] = {
    TensorType::kF32,  TensorType::kF16,    TensorType::kQ4_0,   TensorType::kQ4_1,
    TensorType::kQ5_0, TensorType::kQ5_1,   TensorType::kQ8_0,   TensorType::kQ2_K,
    TensorType::kQ3_K, TensorType::kQ4_K,   TensorType::kQ5_K,   TensorType::kQ6_K,
    TensorType::kBF16, TensorType::kIQ4_NL, TensorType::kIQ4_XS,
};

std::string NameOf(TensorType type) { return std::string(FormatOf(type).name); }

class BlockFormats : public ::testing::TestWithParam<TensorType> {};

INSTANTIATE_TEST_SUITE_P(AllTypes, BlockFormats, ::testing::ValuesIn(kAllTypes),
                         [](const auto& info) { return NameOf(info.param); });

// The oracle is the `gguf` package's dequantize(); tests/golden/block_formats/make.py recorded it.
TEST_P(BlockFormats, ReadTheSameBitsAsTheGgufPackage) {
  const auto model = GgufModel::Open("tests/golden/block_formats/blocks.gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  const GgufTensor* blocks = model->FindTensor(NameOf(GetParam()) + ".blocks");
  const GgufTensor* expected = model->FindTensor(NameOf(GetParam()) + ".values");
  ASSERT_TRUE(blocks != nullptr && expected != nullptr);
  ASSERT_EQ(blocks->type, GetParam());
  ASSERT_EQ(blocks->shape, expected->shape);

  std::vector<float> values(static_cast<size_t>(blocks->elements()));
  DequantizeRow(GetParam(), blocks->data.data(), blocks->elements(), values.data());
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t bits;
    std::memcpy(&bits, expected->data.data() + 4 * i, 4);
    ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), bits)
        << "element " << i << ": " << values[i] << ", not " << std::bit_cast<float>(bits);
  }
}

TEST_P(BlockFormats, ReadFromAnyAlignmentAndNotPastTheRow) {
  const BlockFormat& format = FormatOf(GetParam());
  const int64_t elements = 3 * format.elements;
  const auto bytes = static_cast<size_t>(RowBytes(GetParam(), elements));
  ASSERT_EQ(bytes, static_cast<size_t>(3 * format.bytes));
  std::vector<std::byte> aligned(bytes);
  for (size_t i = 0; i < bytes; ++i) aligned[i] = static_cast<std::byte>((37 * i + 11) % 64);
  std::vector<float> expected(static_cast<size_t>(elements));
  DequantizeRow(GetParam(), aligned.data(), elements, expected.data());
  for (size_t shift = 1; shift < 8; ++shift) {
    std::vector<std::byte> shifted(shift);  // the row ends where the allocation ends
    shifted.insert(shifted.end(), aligned.begin(), aligned.end());
    std::vector<float> values(static_cast<size_t>(elements) + 1, 12345.0f);
    DequantizeRow(GetParam(), shifted.data() + shift, elements, values.data());
    EXPECT_EQ(values.back(), 12345.0f);
    values.pop_back();
    EXPECT_EQ(0, std::memcmp(values.data(), expected.data(), expected.size() * sizeof(float)));
  }
}

struct Vector {
  TensorType type;
  std::vector<int> d_at;    // offsets of the scales
  std::vector<int> min_at;  // offsets of the minima
  std::vector<std::pair<int, double>> values;
  double sum;
};

// A second oracle: six digits each, computed from the published closed forms of the formats, apart
// from any code here. Byte i of the block is 37 i + 11, scales are 0.09998, minima 0.04999.
const Vector kVectors[] = {
    {TensorType::kQ4_0,
     {0},
     {},
     {{0, -0.299927}, {1, 0.199951}, {15, -0.799805}, {16, -0.299927}, {31, 0}},
     -2.09949},
    {TensorType::kQ4_1,
     {0},
     {2},
     {{0, 1.54962}, {1, 0.44989}, {15, 1.04974}, {16, 0.949768}, {31, 1.24969}},
     26.0936},
    {TensorType::kQ5_0,
     {0},
     {},
     {{0, 0.89978}, {1, -0.199951}, {15, -1.19971}, {16, 1.39966}, {31, 0.0999756}},
     1.49963},
    {TensorType::kQ5_1,
     {0},
     {2},
     {{0, 1.94952}, {1, 2.4494}, {15, 3.04926}, {16, 1.94952}, {31, 0.549866}},
     52.0873},
    {TensorType::kQ8_0,
     {0},
     {},
     {{0, 8.49792}, {1, 12.197}, {15, -12.7969}, {16, -9.09778}, {31, -4.79883}},
     -17.5957},
    {TensorType::kQ2_K,
     {80},
     {82},
     {{0, 3.29919},
      {1, 0},
      {16, -0.149963},
      {33, -0.249939},
      {64, 1.04974},
      {100, 1.99951},
      {128, 0.749817},
      {200, 0.799805},
      {255, 0.44989}},
     205.85},
    {TensorType::kQ3_K,
     {108},
     {},
     {{0, 8.09802},
      {1, -10.7974},
      {16, -9.59766},
      {33, 4.39893},
      {64, 3.39917},
      {100, 0},
      {128, 0.199951},
      {200, 2.49939},
      {255, 4.19897}},
     95.7766},
    {TensorType::kQ4_K,
     {0},
     {2},
     {{0, 31.5423},
      {1, -2.54938},
      {16, 31.5423},
      {33, 1.99951},
      {64, 42.0397},
      {100, 9.49768},
      {128, 42.2897},
      {200, 13.8466},
      {255, 4.84882}},
     5442.67},
    {TensorType::kQ5_K,
     {0},
     {2},
     {{0, 81.1302},
      {1, -2.54938},
      {16, 81.1302},
      {33, -0.399902},
      {64, 42.0397},
      {100, 23.4943},
      {128, 104.674},
      {200, 13.8466},
      {255, 10.8474}},
     11618.8},
    {TensorType::kQ6_K,
     {208},
     {},
     {{0, -143.065},
      {1, 169.559},
      {16, -43.1895},
      {33, -67.1836},
      {64, -303.926},
      {100, 252.238},
      {128, -35.0914},
      {200, 108.873},
      {255, -5.99854}},
     461.087},
    {TensorType::kIQ4_NL,
     {0},
     {},
     {{0, -3.49915}, {1, 2.49939}, {15, -12.6969}, {16, -3.49915}, {31, 0.0999756}},
     -25.6937},
    {TensorType::kIQ4_XS,
     {0},
     {},
     {{0, 6.49841},
      {1, -0.0999756},
      {16, 6.49841},
      {33, -0.699829},
      {64, 77.981},
      {100, 3.99902},
      {128, -58.4857},
      {200, 113.972},
      {255, -1.59961}},
     -1100.23},
};

TEST(BlockFormatVectors, AgreeWithTheClosedForms) {
  for (const Vector& vector : kVectors) {
    SCOPED_TRACE(NameOf(vector.type));
    const BlockFormat& format = FormatOf(vector.type);
    std::vector<uint8_t> block(static_cast<size_t>(format.bytes));
    for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<uint8_t>(37 * i + 11);
    for (const int at : vector.d_at) std::memcpy(&block[static_cast<size_t>(at)], "\x66\x2e", 2);
    for (const int at : vector.min_at) std::memcpy(&block[static_cast<size_t>(at)], "\x66\x2a", 2);
    std::vector<float> values(static_cast<size_t>(format.elements));
    DequantizeRow(vector.type, reinterpret_cast<const std::byte*>(block.data()), format.elements,
                  values.data());
    const auto near = [](double actual, double expected) {
      return std::abs(actual - expected) <= 6e-6 * std::max(1.0, std::abs(expected));
    };
    for (const auto& [at, expected] : vector.values) {
      EXPECT_TRUE(near(values[static_cast<size_t>(at)], expected))
          << "element " << at << ": " << values[static_cast<size_t>(at)] << ", not " << expected;
    }
    double sum = 0;
    for (const float value : values) sum += value;
    EXPECT_TRUE(near(sum, vector.sum)) << sum << ", not " << vector.sum;
  }
}

TEST(BlockFormatTable, OfOtherTypesAreNotFound) {
  int found = 0;
  for (uint32_t id = 0; id < 70000; ++id) found += FindBlockFormat(TensorType{id}) != nullptr;
  EXPECT_EQ(found, static_cast<int>(std::size(kAllTypes)));
  // Removed (4, 31), for activations only (9, 15), not read (16, 39), of forks, "negative".
  for (const uint32_t id : {4u, 9u, 15u, 16u, 31u, 39u, 100u, 0x80000000u, 0xffffffffu}) {
    EXPECT_EQ(FindBlockFormat(TensorType{id}), nullptr) << id;
  }
}

TEST(BlockFormatTableDeathTest, RefuseAFractionOfABlock) {
  EXPECT_DEATH(RowBytes(TensorType::kQ4_K, 128), "128 elements of Q4_K");
  EXPECT_DEATH(FormatOf(TensorType{16}), "tensor type 16");
}

}  // namespace
}  // namespace facet
