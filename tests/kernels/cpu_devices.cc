#include "base/check.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/tested_devices.h"

namespace facet {

// Every instruction set this machine has, with each number of threads.
std::vector<NamedDevice> TestedDevices(std::initializer_list<int> threads) {
  std::vector<NamedDevice> devices;
  for (const auto isa : {CpuDeviceOptions::kAvx2, CpuDeviceOptions::kAvx512,
                         CpuDeviceOptions::kAvx512Bf16}) {
    for (const int count : threads) {
      auto device = MakeCpuDevice({count, isa});
      if (!device.ok()) continue;
      const std::string name = (*device)->name() + " x " + std::to_string(count);
      devices.push_back({name, count, *std::move(device)});
    }
  }
  FACET_CHECK(!devices.empty(), "this machine has neither AVX2 nor AVX-512");
  return devices;
}

bool TestedDevicesAreSlow() { return false; }

double TestedDevicesMmaError() { return 0; }

}  // namespace facet
