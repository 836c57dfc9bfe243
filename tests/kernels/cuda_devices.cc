#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {

// The CUDA device, its kernels run by the emulator.
std::vector<NamedDevice> TestedDevices(std::initializer_list<int>) {
  auto device = cuda::MakeCudaDevice({});
  FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
  std::vector<NamedDevice> devices;
  devices.push_back({"cuda-emulated", 1, *std::move(device)});
  return devices;
}

}  // namespace facet
