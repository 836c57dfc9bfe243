#include "tests/runtime/emulated_device.h"

#include <atomic>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda_emulator/driver_host.h"

namespace facet::testing {

std::unique_ptr<Device> MakeEmulated(int index) {
  cuda::CudaDeviceOptions options;
  options.device = index;
  options.workspace_bytes = int64_t{16} << 20;
  options.graph_bytes = int64_t{1} << 20;
  options.full_blocks = 16;
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

GroupOptions OnCuda(GroupOptions options) {
  options.rank.make_device = [next = std::make_shared<std::atomic<int>>(0)] {
    return MakeEmulated((*next)++ % cuda_emulator::kDevices);
  };
  return options;
}

}  // namespace facet::testing
