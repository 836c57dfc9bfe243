#ifndef FACET_TESTS_KERNELS_TESTED_DEVICES_H_
#define FACET_TESTS_KERNELS_TESTED_DEVICES_H_

// Devices that must equal the reference device bit for bit, but for attention on tensor cores. The
// tests of operations (device_*_test.cc) are linked with each of cpu_devices.cc, cuda_devices.cc
// and gpu_devices.cc.

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tests/base/sanitized.h"
#include "tests/kernels/test_data.h"

namespace facet {

struct NamedDevice {
  std::string name;  // "cpu-avx2 x 3"
  int threads = 1;
  std::unique_ptr<Device> device;
};

// The devices that the tests of this binary are about; `threads` for those that have some.
std::vector<NamedDevice> TestedDevices(std::initializer_list<int> threads);

// The CUDA device with --arithmetic=fast: a test of its products is linked with cuda_devices.cc and
// gpu_devices.cc alone.
std::unique_ptr<Device> MakeFastDevice();

// Whether each takes about a thousand times as long as a processor: an emulator.
bool TestedDevicesAreSlow();
// `all`, or `few` of them where the devices are slow, or a sanitizer makes them so.
template <typename T>
std::vector<T> Shapes(std::vector<T> all, std::vector<T> few) {
  return kSanitized || TestedDevicesAreSlow() ? few : all;
}

// Attention over half-precision keys is not the reference's bit for bit where it runs on tensor
// cores: how far one of their instructions may be off, relative to the sum of the magnitudes that
// it adds. 0: it equals the reference.
double TestedDevicesMmaError();

// The first place where the bits differ, or -1. Unlike ==, it tells -0 from 0.
inline int64_t FirstDifference(std::span<const float> a, std::span<const float> b) {
  if (a.size() != b.size()) return static_cast<int64_t>(std::min(a.size(), b.size()));
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0) return static_cast<int64_t>(i);
  }
  return -1;
}

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_TESTED_DEVICES_H_
