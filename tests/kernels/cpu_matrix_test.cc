// How the CPU devices keep matrices.

#include <gtest/gtest.h>

#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/test_data.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

class CpuMatrix : public testing::TestWithParam<TensorType> {};

TEST_P(CpuMatrix, PacksAtTheFormatsWidth) {
  // Bits per weight: the file's, but for the 6-bit scales of Q4_K and Q5_K, which take 8, and the
  // types that are kept as floats.
  const auto bits = [](TensorType type) {
    switch (type) {
      case TensorType::kQ4_K:
        return 4.625;
      case TensorType::kQ5_K:
        return 5.625;
      case TensorType::kQ2_K:
      case TensorType::kQ3_K:
      case TensorType::kIQ4_NL:
      case TensorType::kIQ4_XS:
        return 32.0;
      default:
        return 8.0 * FormatOf(type).bytes / FormatOf(type).elements;
    }
  };
  Random random(1);
  const TestMatrix matrix = MakeMatrix(GetParam(), 33, 512, 0.1f, random);
  for (const NamedDevice& named : TestedDevices({1})) {
    const auto loaded = *named.device->LoadMatrix(matrix.source(), nullptr);
    EXPECT_EQ(static_cast<double>(loaded->packed_bytes()), 64 * 512 * bits(GetParam()) / 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, CpuMatrix, testing::ValuesIn(AllTensorTypes()),
                         [](const testing::TestParamInfo<TensorType>& info) {
                           return std::string(FormatOf(info.param).name);
                         });

TEST(MakeCpuDevice, RefusesZeroThreads) {
  EXPECT_EQ(MakeCpuDevice({0}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace facet
