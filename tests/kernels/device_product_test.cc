// The tested devices' products equal the reference device's bit for bit, whatever the number of
// rows, of threads and of leaves.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/host/matrix_source.h"
#include "kernels/reference/reference_device.h"
#include "tests/base/sanitized.h"
#include "tests/kernels/test_data.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

constexpr int kRowsMax = 33;
std::vector<int> Batches() { return Shapes<int>({1, 2, 3, 5, 6, 7, 12, 13, 33}, {1, 7, 33}); }

std::string TypeName(const testing::TestParamInfo<TensorType>& info) {
  return std::string(FormatOf(info.param).name);
}

// Some widths in whole blocks of the type.
std::vector<int64_t> Widths(TensorType type) {
  const int64_t block = FormatOf(type).elements;
  if (block == 1) return {1, 7, 40, 300};
  if (block == 32) return {32, 96, 512};
  return {256, 768};
}

std::vector<float> RunRoots(Device& device, const Matrix& matrix, Floats x, int rows) {
  const Floats out = *device.AllocateFloats(matrix.root_count() * rows * matrix.rows());
  device.ProductRoots(matrix, x, rows, out);
  return Download(device, out);
}

// The first `rows` rows of every root of a result for kRowsMax rows.
std::vector<float> Prefix(const std::vector<float>& all, int roots, int rows, int64_t width) {
  std::vector<float> prefix;
  for (int root = 0; root < roots; ++root) {
    const auto from = all.begin() + root * kRowsMax * width;
    prefix.insert(prefix.end(), from, from + rows * width);
  }
  return prefix;
}

class DeviceProduct : public testing::TestWithParam<TensorType> {
 protected:
  void ExpectEqual(const TestMatrix& matrix, const LeafCut& cut, const std::vector<float>& x) {
    const auto expected_matrix = *reference_->LoadMatrix(matrix.source(), &cut);
    const std::vector<float> all =
        RunRoots(*reference_, *expected_matrix, Upload(*reference_, x), kRowsMax);
    for (const NamedDevice& named : devices_) {
      const auto loaded = named.device->LoadMatrix(matrix.source(), &cut);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      const Floats input = Upload(*named.device, x);
      for (const int rows : Batches()) {
        if (named.threads > 1 && rows % 3 != 0) continue;  // threads share panels, not rows
        const std::vector<float> got = RunRoots(*named.device, **loaded, input, rows);
        const std::vector<float> expected =
            Prefix(all, expected_matrix->root_count(), rows, matrix.rows);
        ASSERT_EQ(FirstDifference(got, expected), -1)
            << named.name << ", " << matrix.rows << " x " << matrix.columns << ", " << cut.leaves()
            << " leaves, " << rows << " rows";
      }
    }
  }

  std::unique_ptr<Device> reference_ = MakeReferenceDevice();
  std::vector<NamedDevice> devices_ = TestedDevices({1, 2, 3});
};

class BfloatProduct : public DeviceProduct {};

TEST_P(DeviceProduct, EqualsTheReferenceForEveryShape) {
  Random random(static_cast<uint64_t>(GetParam()) + 11);
  const int64_t unit = LeafUnit(GetParam());
  for (const int64_t rows :
       Shapes<int64_t>({1, 2, 3, 5, 6, 7, 8, 16, 31, 33, 64, 65, 127}, {1, 16, 33})) {
    for (const int64_t columns : Widths(GetParam())) {
      const TestMatrix matrix = MakeMatrix(GetParam(), rows, columns, 0.1f, random);
      const std::vector<float> x = MakeActivations(kRowsMax, columns, random);
      const LeafCut one{1, 0, CutColumns(columns, 1, unit)};
      const LeafCut five{8, 1, CutColumns(columns, 5, unit)};
      for (const LeafCut& cut : Shapes<LeafCut>({one,
                                                 five,
                                                 {7, 2, CutColumns(columns, 3, unit)},
                                                 {8, 0, CutColumns(columns, 8, unit)}},
                                                {one, five})) {
        ASSERT_NO_FATAL_FAILURE(ExpectEqual(matrix, cut, x));
      }
    }
  }
}

TEST_P(DeviceProduct, EqualsTheReferenceOverManyLeavesAndPasses) {
  Random random(static_cast<uint64_t>(GetParam()) + 12);
  // So wide that the activations of 33 rows do not pass the panels in one go.
  const int64_t columns = (TestedDevicesAreSlow() ? 16 : 64) * 256;
  const TestMatrix matrix =
      MakeMatrix(GetParam(), TestedDevicesAreSlow() ? 3 : 40, columns, 0.1f, random);
  const std::vector<float> x = MakeActivations(kRowsMax, matrix.columns, random);
  const LeafCut cut{16, 0, CutColumns(matrix.columns, 16, 256)};
  ExpectEqual(matrix, cut, x);
}

TEST_P(DeviceProduct, EqualsTheReferenceForManyRows) {
  // So many that panels are unpacked before they are used: 61 rows are eleven tiles.
  Random random(static_cast<uint64_t>(GetParam()) + 15);
  for (const int64_t columns : Widths(GetParam())) {
    const TestMatrix matrix = MakeMatrix(GetParam(), 83, columns, 0.1f, random);
    const int64_t unit = LeafUnit(GetParam());
    const LeafCut cut{8, 1, CutColumns(columns, 5, unit)};
    const std::vector<float> x = MakeActivations(130, columns, random);
    const auto expected_matrix = *reference_->LoadMatrix(matrix.source(), &cut);
    for (const int rows : Shapes<int>({60, 61, 64, 130}, {64})) {
      const std::vector<float> expected =
          RunRoots(*reference_, *expected_matrix, Upload(*reference_, x), rows);
      for (const NamedDevice& named : devices_) {
        const auto loaded = *named.device->LoadMatrix(matrix.source(), &cut);
        const auto got = RunRoots(*named.device, *loaded, Upload(*named.device, x), rows);
        ASSERT_EQ(FirstDifference(got, expected), -1)
            << named.name << ", " << columns << " columns, " << rows << " rows";
      }
    }
  }
}

// The promise behind every other: batches come and go around a row, its bits stay.
TEST_P(DeviceProduct, ARowDoesNotDependOnItsBatch) {
  Random random(static_cast<uint64_t>(GetParam()) + 17);
  const int64_t columns = Widths(GetParam()).back();
  const TestMatrix matrix = MakeMatrix(GetParam(), 40, columns, 0.1f, random);
  const std::vector<float> row = MakeActivations(1, columns, random);
  for (const NamedDevice& named : devices_) {
    const auto loaded = *named.device->LoadMatrix(matrix.source(), nullptr);
    const auto alone = RunRoots(*named.device, *loaded, Upload(*named.device, row), 1);
    for (const int rows : {2, 7, 16, 64}) {
      for (const int place : Cases<int>({0, rows / 2, rows - 1}, {rows - 1})) {
        std::vector<float> x = MakeActivations(rows, columns, random);
        std::copy(row.begin(), row.end(), x.begin() + place * columns);
        const auto all = RunRoots(*named.device, *loaded, Upload(*named.device, x), rows);
        const std::span got = std::span(all).subspan(place * matrix.rows, matrix.rows);
        ASSERT_EQ(FirstDifference(got, alone), -1)
            << named.name << ", row " << place << " of " << rows;
      }
    }
  }
}

// Numbers whose products lie around the smallest normal one, and some that are below it themselves.
// Processors with dot products of bfloat16 do here what they do, the reference what it says.
TEST_P(BfloatProduct, TinyNumbersAreFlushedAlike) {
  Random random(18);
  const int64_t columns = 300;
  const auto tiny = [&]() -> uint32_t {
    const uint32_t exponent = random() % 16 == 0 ? 0 : 54 + random() % 20;
    return static_cast<uint32_t>(random() % 2) << 31 | exponent << 23 | random() % (1u << 23);
  };
  TestMatrix matrix = MakeMatrix(TensorType::kBF16, 40, columns, 0.1f, random);
  for (size_t i = 0; i < matrix.bytes.size(); i += 2) {
    const auto bits = static_cast<uint16_t>(tiny() >> 16);
    std::memcpy(&matrix.bytes[i], &bits, sizeof(bits));
  }
  std::vector<float> x(kRowsMax * columns);
  for (float& value : x) value = std::bit_cast<float>(tiny());
  ExpectEqual(matrix, {8, 0, CutColumns(columns, 8, 2)}, x);
}

TEST_P(DeviceProduct, GatesLikeTheReference) {
  Random random(static_cast<uint64_t>(GetParam()) + 16);
  const int64_t columns = Widths(GetParam()).back();
  const int64_t block = FormatOf(GetParam()).elements;
  // The gate of another type than what it is multiplied with, wherever both can be this wide.
  const TensorType other = columns % 32 == 0 && block > 1 ? TensorType::kQ8_0 : TensorType::kF32;
  for (const int64_t width : Shapes<int64_t>({1, 40, 64, 97}, {1, 40})) {
    const TestMatrix gate = MakeMatrix(other, width, columns, 0.05f, random);
    const TestMatrix up = MakeMatrix(GetParam(), width, columns, 0.05f, random);
    const std::vector<float> x = MakeActivations(70, columns, random);
    for (const int rows : Shapes<int>({1, 2, 7, 16, 70}, {1, 16})) {
      for (const Activation activation : {Activation::kGeluTanh, Activation::kSilu}) {
        const auto run = [&](Device& device) {
          const auto loaded_gate = *device.LoadMatrix(gate.source(), nullptr);
          const auto loaded_up = *device.LoadMatrix(up.source(), nullptr);
          const Floats out = *device.AllocateFloats(rows * width);
          device.GatedProduct(activation, *loaded_gate, *loaded_up, Upload(device, x), rows, out);
          return Download(device, out);
        };
        const std::vector<float> expected = run(*reference_);
        for (const NamedDevice& named : devices_) {
          ASSERT_EQ(FirstDifference(run(*named.device), expected), -1)
              << named.name << ", " << width << " wide, " << rows << " rows";
        }
      }
    }
  }
}

TEST_P(DeviceProduct, EmbedsLikeTheReference) {
  Random random(static_cast<uint64_t>(GetParam()) + 13);
  const TestMatrix matrix = MakeMatrix(GetParam(), 77, 512, 0.1f, random);
  std::vector<int32_t> rows(40);
  for (int32_t& row : rows) row = static_cast<int32_t>(random() % 77);
  const auto embed = [&](Device& device) {
    const auto table = *device.LoadMatrix(matrix.source(), nullptr);
    const Floats out = *device.AllocateFloats(40 * 512);
    device.EmbedRows(*table, 0, rows, 25.298221f, out);
    return Download(device, out);
  };
  const std::vector<float> expected = embed(*reference_);
  for (const NamedDevice& named : devices_) {
    EXPECT_EQ(FirstDifference(embed(*named.device), expected), -1) << named.name;
  }
}

TEST_P(DeviceProduct, ReordersRows) {
  Random random(static_cast<uint64_t>(GetParam()) + 14);
  TestMatrix matrix = MakeMatrix(GetParam(), 50, 256, 0.1f, random);
  matrix.row_order = {49, 3, 0, 17};
  matrix.rows = 4;
  const std::vector<float> x = MakeActivations(2, 256, random);
  const auto expected_matrix = *reference_->LoadMatrix(matrix.source(), nullptr);
  const std::vector<float> expected =
      RunRoots(*reference_, *expected_matrix, Upload(*reference_, x), 2);
  for (const NamedDevice& named : devices_) {
    const auto loaded = *named.device->LoadMatrix(matrix.source(), nullptr);
    const auto got = RunRoots(*named.device, *loaded, Upload(*named.device, x), 2);
    EXPECT_EQ(FirstDifference(got, expected), -1) << named.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Types, DeviceProduct, testing::ValuesIn(AllTensorTypes()), TypeName);
INSTANTIATE_TEST_SUITE_P(Types, BfloatProduct, testing::Values(TensorType::kBF16), TypeName);

TEST(DeviceProductOfParts, EqualsTheReferenceForMixedTypes) {
  Random random(21);
  const TestMatrix parts[] = {MakeMatrix(TensorType::kQ5_0, 100, 256, 0.1f, random),
                              MakeMatrix(TensorType::kF32, 33, 256, 0.1f, random),
                              MakeMatrix(TensorType::kQ6_K, 70, 256, 0.1f, random),
                              MakeMatrix(TensorType::kQ8_0, 1, 256, 0.1f, random)};
  const std::vector<float> x = MakeActivations(9, 256, random);
  const auto run = [&](Device& device) {
    std::vector<std::unique_ptr<Matrix>> loaded;
    std::vector<const Matrix*> pointers;
    for (const TestMatrix& part : parts) {
      loaded.push_back(*device.LoadMatrix(part.source(), nullptr));
      pointers.push_back(loaded.back().get());
    }
    const Floats out = *device.AllocateFloats(9 * 204);
    device.Product(pointers, Upload(device, x), 9, out);
    return Download(device, out);
  };
  const std::vector<float> expected = run(*MakeReferenceDevice());
  for (const NamedDevice& named : TestedDevices({1, 2, 3})) {
    EXPECT_EQ(FirstDifference(run(*named.device), expected), -1) << named.name;
  }
}

TEST(DeviceProductOfParts, ExtremeActivationsEqualTheReference) {
  Random random(22);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 40, 64, 0.1f, random);
  std::vector<float> x = MakeFloats(5 * 64, 1, random);
  for (int k = 0; k < 64; ++k) {
    x[k] *= 1e-38f;       // 127 / amax overflows
    x[64 + k] *= 1e-41f;  // subnormal
    x[128 + k] = k % 2 == 0 ? 1e30f : -1e30f;
    x[192 + k] = 0;
  }
  const auto run = [&](Device& device) {
    const auto loaded = *device.LoadMatrix(matrix.source(), nullptr);
    return RunRoots(device, *loaded, Upload(device, x), 5);
  };
  const std::vector<float> expected = run(*MakeReferenceDevice());
  for (const NamedDevice& named : TestedDevices({1})) {
    EXPECT_EQ(FirstDifference(run(*named.device), expected), -1) << named.name;
  }
}

TEST(DeviceProductOfParts, ANotANumberReachesTheResult) {
  Random random(23);
  const TestMatrix matrix = MakeMatrix(TensorType::kQ4_1, 40, 64, 0.1f, random);
  std::vector<float> x = MakeFloats(2 * 64, 1, random);
  x[3] = std::nanf("");
  x[64 + 40] = INFINITY;
  for (const NamedDevice& named : TestedDevices({1})) {
    const auto loaded = *named.device->LoadMatrix(matrix.source(), nullptr);
    for (const float value : RunRoots(*named.device, *loaded, Upload(*named.device, x), 2)) {
      EXPECT_FALSE(std::isfinite(value)) << named.name;
    }
  }
}

TEST(DeviceMatrix, RefusesScalesThatAreNotFinite) {
  Random random(24);
  for (const TensorType type : {TensorType::kQ8_0, TensorType::kQ4_K, TensorType::kQ2_K}) {
    TestMatrix matrix = MakeMatrix(type, 100, 512, 0.1f, random);
    const int offset = type == TensorType::kQ2_K ? 80 : 0;
    PoisonScale(&matrix, 97, 0, offset);
    PoisonScale(&matrix, 41, 1, offset);
    for (const NamedDevice& named : TestedDevices({1, 2})) {
      const absl::Status status = named.device->LoadMatrix(matrix.source(), nullptr).status();
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << named.name;
      EXPECT_THAT(std::string(status.message()),
                  testing::AllOf(testing::HasSubstr(matrix.name), testing::HasSubstr("row 41")));
    }
  }
}

}  // namespace
}  // namespace facet
