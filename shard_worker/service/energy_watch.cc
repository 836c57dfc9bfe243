#include "shard_worker/service/energy_watch.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "base/status.h"
#include "shard_worker/service/host_name.h"

namespace facet {

EnergyWatch::EnergyWatch(EnergyWatchOptions options, WorkerMetrics* metrics)
    : options_(std::move(options)), metrics_(metrics), host_(BootId()) {}

EnergyWatch::~EnergyWatch() = default;

void EnergyWatch::Start(std::string_view gpu_bus_id) {
  OpenHost();
  if (!gpu_bus_id.empty()) OpenGpu(gpu_bus_id);
  if (host_meter_ == nullptr && gpu_meter_ == nullptr) return;
  ticker_.emplace("energy", options_.period.count() * 1000, [this] { Read(); });
}

void EnergyWatch::OpenHost() {
  absl::StatusOr<std::unique_ptr<HostMeter>> meter = HostMeter::Open(options_.host);
  if (meter.ok()) {
    host_meter_ = *std::move(meter);
  } else {
    spdlog::info("the host's energy is not known: {}", MessageOf(meter.status()));
  }
}

void EnergyWatch::OpenGpu(std::string_view bus_id) {
  const auto open = [&]() -> absl::StatusOr<std::unique_ptr<GpuMeter>> {
    FACET_ASSIGN_OR_RETURN(const NvmlApi api, options_.open_nvml());
    return GpuMeter::Open(api, std::string(bus_id));
  };
  absl::StatusOr<std::unique_ptr<GpuMeter>> meter = open();
  if (meter.ok()) {
    gpu_meter_ = *std::move(meter);
    spdlog::info("GPU {} is {}", bus_id, gpu_meter_->uuid());
  } else {
    spdlog::warn("what GPU {} takes is not known: {}", bus_id, MessageOf(meter.status()));
  }
}

// On the thread "energy".
void EnergyWatch::Read() {
  if (gpu_meter_ != nullptr) metrics_->AddGpu(gpu_meter_->uuid(), gpu_meter_->Read());
  if (host_meter_ != nullptr) metrics_->AddHostEnergy(host_, host_meter_->Read());
}

}  // namespace facet
