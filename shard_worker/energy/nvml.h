#ifndef FACET_SHARD_WORKER_ENERGY_NVML_H_
#define FACET_SHARD_WORKER_ENERGY_NVML_H_

// The functions of NVIDIA's management library that Facet calls, as a table: opened at run time,
// since only machines with a GPU's driver have it, or filled in by a test. CUDA's toolkit need not
// have nvml.h, so these are its declarations by hand; tests/energy/nvml_header_test.cc holds them
// against the header where there is one. Its enumerations are passed as int, which is as wide.

#include "absl/status/statusor.h"

struct nvmlDevice_st;

namespace facet {

using NvmlDevice = ::nvmlDevice_st*;  // nvmlDevice_t

struct NvmlMemory {  // nvmlMemory_t, bytes
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};

inline constexpr int kNvmlSuccess = 0;         // NVML_SUCCESS
inline constexpr int kNvmlTemperatureGpu = 0;  // NVML_TEMPERATURE_GPU
inline constexpr int kNvmlClockSm = 1;         // NVML_CLOCK_SM
inline constexpr int kNvmlClockMemory = 2;     // NVML_CLOCK_MEM
inline constexpr int kNvmlUuidBytes = 96;      // NVML_DEVICE_UUID_V2_BUFFER_SIZE

// Any thread may call them. Those that return int say kNvmlSuccess, or what error_string()
// explains.
struct NvmlApi {
  int (*init)() = nullptr;      // nvmlInit_v2
  int (*shutdown)() = nullptr;  // nvmlShutdown
  // nvmlErrorString
  const char* (*error_string)(int result) = nullptr;
  // nvmlDeviceGetHandleByPciBusId_v2
  int (*device)(const char* bus_id, NvmlDevice* device) = nullptr;
  // nvmlDeviceGetUUID
  int (*uuid)(NvmlDevice, char* uuid, unsigned int length) = nullptr;
  // nvmlDeviceGetPowerUsage
  int (*power)(NvmlDevice, unsigned int* milliwatts) = nullptr;
  // nvmlDeviceGetTotalEnergyConsumption
  int (*energy)(NvmlDevice, unsigned long long* millijoules) = nullptr;
  // nvmlDeviceGetMemoryInfo
  int (*memory)(NvmlDevice, NvmlMemory* memory) = nullptr;
  // nvmlDeviceGetTemperature
  int (*temperature)(NvmlDevice, int sensor, unsigned int* celsius) = nullptr;
  // nvmlDeviceGetClockInfo
  int (*clock)(NvmlDevice, int clock, unsigned int* megahertz) = nullptr;
};

// Opens the library, which stays open. FailedPrecondition where there is none, or where it lacks
// one of the functions, which it names.
absl::StatusOr<NvmlApi> OpenNvml(const char* library = "libnvidia-ml.so.1");

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENERGY_NVML_H_
