#include "shard_worker/energy/gpu_meter.h"

#include <array>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

absl::Status Explain(const NvmlApi& api, int result, const char* call) {
  if (result == kNvmlSuccess) return absl::OkStatus();
  return FailedPrecondition("{}: {}", call, api.error_string(result));
}

// A value that NVML has in thousandths or millions of our unit.
std::optional<double> Scaled(int result, unsigned int value, double unit) {
  if (result != kNvmlSuccess) return std::nullopt;
  return value * unit;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GpuMeter>> GpuMeter::Open(const NvmlApi& api,
                                                         const std::string& bus_id) {
  FACET_RETURN_IF_ERROR(Explain(api, api.init(), "nvmlInit"));
  std::unique_ptr<GpuMeter> meter(new GpuMeter(api));  // shuts down what was initialised
  FACET_RETURN_IF_ERROR(meter->Find(bus_id));
  return meter;
}

GpuMeter::~GpuMeter() { api_.shutdown(); }

absl::Status GpuMeter::Find(const std::string& bus_id) {
  FACET_RETURN_IF_ERROR(
      Explain(api_, api_.device(bus_id.c_str(), &device_), "nvmlDeviceGetHandleByPciBusId"));
  std::array<char, kNvmlUuidBytes> uuid = {};
  FACET_RETURN_IF_ERROR(
      Explain(api_, api_.uuid(device_, uuid.data(), kNvmlUuidBytes), "nvmlDeviceGetUUID"));
  uuid_ = uuid.data();
  return absl::OkStatus();
}

GpuReading GpuMeter::Read() {
  GpuReading reading;
  unsigned int value = 0;
  int result = api_.power(device_, &value);
  reading.watts = Scaled(result, value, 1e-3);
  result = api_.temperature(device_, kNvmlTemperatureGpu, &value);
  reading.celsius = Scaled(result, value, 1);
  result = api_.clock(device_, kNvmlClockSm, &value);
  reading.sm_hertz = Scaled(result, value, 1e6);
  result = api_.clock(device_, kNvmlClockMemory, &value);
  reading.memory_hertz = Scaled(result, value, 1e6);
  NvmlMemory memory = {};
  if (api_.memory(device_, &memory) == kNvmlSuccess) {
    reading.memory_used_bytes = static_cast<double>(memory.used);
    reading.memory_bytes = static_cast<double>(memory.total);
  }
  reading.joules = JoulesSinceLast();
  return reading;
}

std::optional<double> GpuMeter::JoulesSinceLast() {
  unsigned long long now = 0;
  if (api_.energy(device_, &now) != kNvmlSuccess) return std::nullopt;
  const std::optional<unsigned long long> before = std::exchange(millijoules_, now);
  // The driver counts from its start: less than before means that it has begun anew.
  if (!before || now < *before) return std::nullopt;
  return static_cast<double>(now - *before) * 1e-3;
}

}  // namespace facet
