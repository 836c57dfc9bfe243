#ifndef FACET_SHARD_WORKER_SERVICE_ENERGY_WATCH_H_
#define FACET_SHARD_WORKER_SERVICE_ENERGY_WATCH_H_

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "shard_worker/energy/gpu_meter.h"
#include "shard_worker/energy/host_meter.h"
#include "shard_worker/energy/nvml.h"
#include "shard_worker/service/ticker.h"
#include "shard_worker/service/worker_metrics.h"

namespace facet {

struct EnergyWatchOptions {
  std::chrono::milliseconds period{1000};  // between two readings
  HostMeterOptions host;
  // Called for a rank on a GPU only.
  std::function<absl::StatusOr<NvmlApi>()> open_nvml = [] { return OpenNvml(); };
};

// Tells the metrics what a rank's GPU and its host take, from a thread of its own ("energy"), so
// that no step waits for it. What cannot be read is said once in the log and is no metric.
class EnergyWatch {
 public:
  // Borrows `metrics`.
  EnergyWatch(EnergyWatchOptions options, WorkerMetrics* metrics);
  // Waits for the end of a reading.
  ~EnergyWatch();
  EnergyWatch(const EnergyWatch&) = delete;
  EnergyWatch& operator=(const EnergyWatch&) = delete;

  // Begins to read. `gpu_bus_id`: the rank's GPU (Rank::gpu_bus_id()); empty: none. Call once.
  void Start(std::string_view gpu_bus_id);

 private:
  void OpenHost();
  void OpenGpu(std::string_view bus_id);
  void Read();

  const EnergyWatchOptions options_;
  WorkerMetrics* const metrics_;
  const std::string host_;
  std::unique_ptr<HostMeter> host_meter_;  // null: nothing to read
  std::unique_ptr<GpuMeter> gpu_meter_;    // null: nothing to read
  std::optional<Ticker> ticker_;           // the last: its thread uses the others
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_ENERGY_WATCH_H_
