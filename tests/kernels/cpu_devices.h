#ifndef FACET_TESTS_KERNELS_CPU_DEVICES_H_
#define FACET_TESTS_KERNELS_CPU_DEVICES_H_

// The CPU devices this machine can run, which must all equal the reference device.

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/kernels/test_data.h"

namespace facet {

struct NamedDevice {
  std::string name;  // "cpu-avx2 x 3"
  int threads = 1;
  std::unique_ptr<Device> device;
};

// Every instruction set this machine has, with each number of threads.
inline std::vector<NamedDevice> CpuDevices(std::initializer_list<int> threads) {
  std::vector<NamedDevice> devices;
  for (const auto isa : {CpuDeviceOptions::kAvx2, CpuDeviceOptions::kAvx512}) {
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

// The first place where the bits differ, or -1. Unlike ==, it tells -0 from 0.
inline int64_t FirstDifference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return static_cast<int64_t>(std::min(a.size(), b.size()));
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_CPU_DEVICES_H_
