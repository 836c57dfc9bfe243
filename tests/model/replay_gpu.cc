#include <gmock/gmock.h>

#include <cstdio>
#include <cstdlib>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_module.h"
#include "tests/model/replay_devices.h"

namespace facet {
namespace {

// What ctest takes for "skipped".
constexpr int kSkipped = 77;

absl::StatusOr<std::unique_ptr<Device>> MakeGpu(int rank, bool graphs) {
  FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module, cuda::OpenCudaModule());
  FACET_ASSIGN_OR_RETURN(const int count, module->device_count());
  cuda::CudaDeviceOptions options;
  options.device = rank % count;  // ranks may share one
  options.graph_fallback = false;
  if (!graphs) options.graph_launches = 0;
  return module->make_device(options);
}

}  // namespace

std::unique_ptr<Device> MakeReplayDevice(int rank, bool graphs) {
  auto device = MakeGpu(rank, graphs);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

bool ExchangeOnDevices() {
  const auto module = cuda::OpenCudaModule();
  return module.ok() && (*module)->nccl_version().ok() && (*module)->device_count().value_or(0) > 1;
}

std::optional<GraphCounts> CountGraphs() { return std::nullopt; }

}  // namespace facet

// Without a GPU there is nothing to test, which is said aloud; with FACET_GPU set it is a failure.
int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (const auto device = facet::MakeGpu(0, true); !device.ok()) {
    std::printf("no GPU to test: %s\n", facet::MessageOf(device.status()).c_str());
    return std::getenv("FACET_GPU") == nullptr ? facet::kSkipped : 1;
  }
  return RUN_ALL_TESTS();
}
