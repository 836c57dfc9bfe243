#include <gmock/gmock.h>

#include <cstdio>
#include <cstdlib>

#include "absl/status/statusor.h"
#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_module.h"
#include "tests/kernels/tested_devices.h"

namespace facet {
namespace {

// What ctest takes for "skipped".
constexpr int kSkipped = 77;

absl::StatusOr<std::unique_ptr<Device>> MakeGpu(const cuda::CudaDeviceOptions& options = {}) {
  FACET_ASSIGN_OR_RETURN(const cuda::CudaModule* const module, cuda::OpenCudaModule());
  FACET_RETURN_IF_ERROR(module->device_count().status());
  return module->make_device(options);
}

}  // namespace

// This machine's first GPU, through the module that workers open.
std::vector<NamedDevice> TestedDevices(std::initializer_list<int>) {
  auto device = MakeGpu();
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  std::vector<NamedDevice> devices;
  devices.push_back({(*device)->name(), 1, *std::move(device)});
  return devices;
}

std::unique_ptr<Device> MakeFastDevice() {
  cuda::CudaDeviceOptions options;
  options.fast = true;
  auto device = MakeGpu(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

bool TestedDevicesAreSlow() { return false; }

// It may cut each of the seventeen numbers that it adds to 24 bits of the largest.
double TestedDevicesMmaError() { return 17 * 0x1p-24; }

}  // namespace facet

// Without a GPU there is nothing to test, which is said aloud; with FACET_GPU set it is a failure.
int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  if (const auto device = facet::MakeGpu(); !device.ok()) {
    std::printf("no GPU to test: %s\n", facet::MessageOf(device.status()).c_str());
    return std::getenv("FACET_GPU") == nullptr ? facet::kSkipped : 1;
  }
  return RUN_ALL_TESTS();
}
