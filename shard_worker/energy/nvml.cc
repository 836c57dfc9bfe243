#include "shard_worker/energy/nvml.h"

#include <dlfcn.h>

#include "base/status.h"

namespace facet {
namespace {

template <typename Function>
absl::Status Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function != nullptr) return absl::OkStatus();
  return FailedPrecondition("NVML has no {}", name);
}

}  // namespace

absl::StatusOr<NvmlApi> OpenNvml(const char* library) {
  void* const opened = dlopen(library, RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) return FailedPrecondition("{}", dlerror());
  NvmlApi api;
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlInit_v2", &api.init));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlShutdown", &api.shutdown));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlErrorString", &api.error_string));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetHandleByPciBusId_v2", &api.device));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetUUID", &api.uuid));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetPowerUsage", &api.power));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetTotalEnergyConsumption", &api.energy));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetMemoryInfo", &api.memory));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetTemperature", &api.temperature));
  FACET_RETURN_IF_ERROR(Find(opened, "nvmlDeviceGetClockInfo", &api.clock));
  return api;
}

}  // namespace facet
