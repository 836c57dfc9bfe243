// The real NVML says of this machine's first GPU what a GPU may say.

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "kernels/cuda/cuda_module.h"
#include "shard_worker/energy/gpu_meter.h"

namespace facet {
namespace {

// What ctest takes for "skipped".
constexpr int kSkipped = 77;

absl::StatusOr<std::string> FirstBusId() {
  FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module, cuda::OpenCudaModule());
  FACET_RETURN_IF_ERROR(module->device_count().status());
  return module->bus_id(0);
}

TEST(GpuEnergy, TheGpuThatCudaNamesAnswers) {
  const absl::StatusOr<NvmlApi> api = OpenNvml();
  ASSERT_TRUE(api.ok()) << api.status();
  const absl::StatusOr<std::unique_ptr<GpuMeter>> meter = GpuMeter::Open(*api, *FirstBusId());
  ASSERT_TRUE(meter.ok()) << meter.status();
  EXPECT_TRUE((*meter)->uuid().starts_with("GPU-")) << (*meter)->uuid();
  (*meter)->Read();
  const GpuReading reading = (*meter)->Read();
  ASSERT_TRUE(reading.memory_bytes && reading.memory_used_bytes);
  EXPECT_GT(*reading.memory_bytes, 1e9);
  EXPECT_LE(*reading.memory_used_bytes, *reading.memory_bytes);
  // What it does not say is absent; what it says makes sense.
  EXPECT_GT(reading.watts.value_or(1), 0);
  EXPECT_GE(reading.joules.value_or(0), 0);
  EXPECT_GT(reading.celsius.value_or(1), 0);
  EXPECT_GT(reading.sm_hertz.value_or(1e9), 1e6);
}

}  // namespace
}  // namespace facet

// Without a GPU there is nothing to test, which is said aloud; with FACET_GPU set it is a failure.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (const auto bus_id = facet::FirstBusId(); !bus_id.ok()) {
    std::printf("no GPU to test: %s\n", facet::MessageOf(bus_id.status()).c_str());
    return std::getenv("FACET_GPU") == nullptr ? facet::kSkipped : 1;
  }
  return RUN_ALL_TESTS();
}
