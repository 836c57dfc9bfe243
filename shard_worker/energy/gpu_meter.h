#ifndef FACET_SHARD_WORKER_ENERGY_GPU_METER_H_
#define FACET_SHARD_WORKER_ENERGY_GPU_METER_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "shard_worker/energy/nvml.h"

namespace facet {

// What a GPU says of itself at one time. What it does not say is absent, never invented.
struct GpuReading {
  std::optional<double> joules;  // since the reading before; absent at the first
  std::optional<double> watts;
  std::optional<double> memory_used_bytes;
  std::optional<double> memory_bytes;
  std::optional<double> celsius;
  std::optional<double> sm_hertz;
  std::optional<double> memory_hertz;
};

// Reads one GPU, whoever else uses it. One thread at a time; a reading may take milliseconds.
class GpuMeter {
 public:
  // The GPU at a PCI address ("0000:3b:00.0"), which is what CUDA and NVML both know it by: they
  // number GPUs differently. FailedPrecondition says which of NVML's functions failed, and why.
  static absl::StatusOr<std::unique_ptr<GpuMeter>> Open(const NvmlApi& api,
                                                        const std::string& bus_id);
  ~GpuMeter();
  GpuMeter(const GpuMeter&) = delete;
  GpuMeter& operator=(const GpuMeter&) = delete;

  // "GPU-5fd7...": the same in every process and container.
  const std::string& uuid() const { return uuid_; }
  GpuReading Read();

 private:
  explicit GpuMeter(const NvmlApi& api) : api_(api) {}
  absl::Status Find(const std::string& bus_id);
  std::optional<double> JoulesSinceLast();

  const NvmlApi api_;
  NvmlDevice device_ = nullptr;
  std::string uuid_;
  std::optional<unsigned long long> millijoules_;  // at the reading before
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENERGY_GPU_METER_H_
