// Matrices that are packed to be searched multiply and embed as any other.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/kernels/head_search.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

class SplitMatrix : public testing::TestWithParam<TensorType> {};

TEST_P(SplitMatrix, MultipliesEmbedsAndWeighsAsOtherwise) {
  Random random(10);
  const int64_t block = FormatOf(GetParam()).elements;
  std::vector<NamedDevice> devices = TestedDevices({1, 2});
  for (const int64_t rows : {1, 31, 33, 100}) {
    const TestMatrix matrix = MakeMatrix(GetParam(), rows, 512 / block * block, 0.05f, random);
    const std::vector<float> x = MakeActivations(67, matrix.columns, random);
    for (const NamedDevice& named : devices) {
      Device& device = *named.device;
      const auto whole = *device.LoadMatrix(matrix.source(), nullptr);
      const auto split = *device.LoadMatrix(Searched(matrix), nullptr);
      for (const int batch : {1, 2, 5, 6, 7, 13, 67}) {  // 67: panels are unpacked
        const auto product = [&](const Matrix* part) {
          const Floats out = *device.AllocateFloats(batch * rows);
          device.Product(std::span(&part, 1), Upload(device, x), batch, out);
          return Download(device, out);
        };
        ASSERT_EQ(FirstDifference(product(split.get()), product(whole.get())), -1) << named.name;
      }
      const auto embed = [&](const Matrix& table) {
        const std::vector<int32_t> ids = {static_cast<int32_t>(rows - 1), 0};
        const Floats out = *device.AllocateFloats(2 * matrix.columns);
        device.EmbedRows(table, 0, ids, 25.298221f, out);
        return Download(device, out);
      };
      ASSERT_EQ(FirstDifference(embed(*split), embed(*whole)), -1) << named.name;
      EXPECT_LE(static_cast<double>(split->packed_bytes()),
                1.01 * static_cast<double>(whole->packed_bytes()));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, SplitMatrix, testing::Values(TensorType::kQ8_0, TensorType::kQ6_K),
                         [](const auto& info) { return std::string(FormatOf(info.param).name); });

}  // namespace
}  // namespace facet
