#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {

namespace {

// So small that larger operations are cut into several.
constexpr int64_t kWorkspaceBytes = int64_t{8} << 20;
// So few that attention is cut both ways: chunks of a scenario by splits, the whole not.
constexpr int kFullBlocks = 16;
constexpr int kSplitsPerPass = 2;

}  // namespace

// The CUDA device, its kernels run by the emulator.
std::vector<NamedDevice> TestedDevices(std::initializer_list<int>) {
  cuda::CudaDeviceOptions options;
  options.workspace_bytes = kWorkspaceBytes;
  options.full_blocks = kFullBlocks;
  options.splits_per_pass = kSplitsPerPass;
  options.graph_bytes = int64_t{1} << 20;
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  std::vector<NamedDevice> devices;
  devices.push_back({"cuda-emulated", 1, *std::move(device)});
  return devices;
}

std::unique_ptr<Device> MakeFastDevice() {
  cuda::CudaDeviceOptions options;
  options.fast = true;
  options.workspace_bytes = kWorkspaceBytes;
  options.panel_bytes = int64_t{64} << 10;  // most matrices are several panels
  options.library_bytes = int64_t{8} << 10;
  options.graph_bytes = int64_t{1} << 20;
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

bool TestedDevicesAreSlow() { return true; }

double TestedDevicesMmaError() { return 0x1p-24; }  // the emulator rounds once, to nearest

}  // namespace facet
