#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/model/replay_devices.h"

namespace facet {

std::unique_ptr<Device> MakeReplayDevice(int rank, bool graphs) {
  cuda::CudaDeviceOptions options;
  options.device = rank;
  options.workspace_bytes = int64_t{8} << 20;
  options.graph_bytes = int64_t{1} << 20;
  options.graph_fallback = false;
  if (!graphs) options.graph_launches = 0;
  auto device = cuda::MakeCudaDevice(options);
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  return *std::move(device);
}

bool ExchangeOnDevices() { return true; }

std::optional<GraphCounts> CountGraphs() {
  return GraphCounts{cuda_emulator::GraphsMade(), cuda_emulator::GraphLaunches()};
}

}  // namespace facet
