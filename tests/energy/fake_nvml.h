#ifndef FACET_TESTS_ENERGY_FAKE_NVML_H_
#define FACET_TESTS_ENERGY_FAKE_NVML_H_

#include <algorithm>
#include <string_view>

#include "shard_worker/energy/nvml.h"

namespace facet::testing {

// A stand-in for NVML, with one GPU. What it says is set from outside; one at a time.
struct FakeNvml {
  static constexpr const char* kBusId = "0000:3b:00.0";
  static constexpr std::string_view kUuid = "GPU-00000000-0000-0000-0000-000000000001";
  static constexpr int kNotSupported = 3;  // NVML_ERROR_NOT_SUPPORTED
  static constexpr int kNotFound = 6;      // NVML_ERROR_NOT_FOUND

  int initialised = 0;  // less shutdowns
  int init_result = kNvmlSuccess;
  bool tells_energy = true;
  bool tells_clocks = true;
  unsigned int milliwatts = 345'600;
  unsigned long long millijoules = 1'000'000;
  NvmlMemory memory = {80'000'000'000, 30'000'000'000, 50'000'000'000};

  FakeNvml() { current = this; }
  ~FakeNvml() { current = nullptr; }
  FakeNvml(const FakeNvml&) = delete;
  FakeNvml& operator=(const FakeNvml&) = delete;

  NvmlApi api() const {
    NvmlApi api;
    api.init = [] {
      if (current->init_result == kNvmlSuccess) ++current->initialised;
      return current->init_result;
    };
    api.shutdown = [] { return --current->initialised, kNvmlSuccess; };
    api.error_string = [](int result) {
      return result == kNotFound ? "Not Found" : "Driver Not Loaded";
    };
    api.device = [](const char* bus_id, NvmlDevice* device) {
      if (std::string_view(bus_id) != kBusId) return kNotFound;
      *device = reinterpret_cast<NvmlDevice>(current);
      return kNvmlSuccess;
    };
    api.uuid = [](NvmlDevice, char* uuid, unsigned int length) {
      if (length <= kUuid.size()) return 7;  // NVML_ERROR_INSUFFICIENT_SIZE
      *std::copy(kUuid.begin(), kUuid.end(), uuid) = '\0';
      return kNvmlSuccess;
    };
    api.power = [](NvmlDevice, unsigned int* value) {
      return *value = current->milliwatts, kNvmlSuccess;
    };
    api.energy = [](NvmlDevice, unsigned long long* value) {
      if (!current->tells_energy) return kNotSupported;
      return *value = current->millijoules, kNvmlSuccess;
    };
    api.memory = [](NvmlDevice, NvmlMemory* value) {
      return *value = current->memory, kNvmlSuccess;
    };
    api.temperature = [](NvmlDevice, int sensor, unsigned int* value) {
      return *value = sensor == kNvmlTemperatureGpu ? 61 : 0, kNvmlSuccess;
    };
    api.clock = [](NvmlDevice, int clock, unsigned int* value) {
      if (!current->tells_clocks) return kNotSupported;
      *value = clock == kNvmlClockSm ? 1980 : 2619;
      return kNvmlSuccess;
    };
    return api;
  }

 private:
  static inline FakeNvml* current = nullptr;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_ENERGY_FAKE_NVML_H_
