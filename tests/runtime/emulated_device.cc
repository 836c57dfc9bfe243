#include "tests/runtime/emulated_device.h"

#include <atomic>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda_emulator/driver_host.h"

namespace facet::testing {

std::unique_ptr<Device> MakeEmulated(int index, bool fast) {
  cuda::CudaDeviceOptions options;
  options.device = index;
  options.fast = fast;
  options.panel_bytes = int64_t{32} << 10;
  options.library_bytes = int64_t{8} << 10;
  options.workspace_bytes = int64_t{16} << 20;
  options.graph_bytes = int64_t{1} << 20;
  options.full_blocks = 16;
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

GroupOptions OnCuda(GroupOptions options, bool fast) {
  options.rank.make_device = [fast, next = std::make_shared<std::atomic<int>>(0)] {
    return MakeEmulated((*next)++ % cuda_emulator::kDevices, fast);
  };
  return options;
}

}  // namespace facet::testing
