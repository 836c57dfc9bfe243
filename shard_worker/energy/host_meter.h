#ifndef FACET_SHARD_WORKER_ENERGY_HOST_METER_H_
#define FACET_SHARD_WORKER_ENERGY_HOST_METER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace facet {

struct HostMeterOptions {
  // Linux's power capping classes: Documentation/power/powercap/powercap.rst.
  std::string folder = "/sys/class/powercap";
  int zones_max = 64;  // further ones are left out
};

struct ZoneEnergy {
  std::string_view zone;  // "package-0", "package-0/dram"; lives as long as the meter
  double joules = 0;      // since the reading before
};

// Reads what the host's processors and their memory take, by their own counters (RAPL). These are
// the host's, whatever runs on it, so one process of a host tells them: the one that holds a lock
// on the first counter's file, which the kernel frees with the process. One thread at a time.
class HostMeter {
 public:
  // NotFound where the host has no such counters, PermissionDenied where this process may not read
  // them (most kernels let root only).
  static absl::StatusOr<std::unique_ptr<HostMeter>> Open(const HostMeterOptions& options = {});
  ~HostMeter();
  HostMeter(const HostMeter&) = delete;
  HostMeter& operator=(const HostMeter&) = delete;

  // Empty while another process tells them, and at the first reading after that. A counter that
  // cannot be read is left out.
  std::vector<ZoneEnergy> Read();

 private:
  struct Zone {
    std::string name;
    int file = -1;
    uint64_t range = 0;  // microjoules after which the counter begins anew; 0: not known
    std::optional<uint64_t> last;
  };

  HostMeter() = default;
  // Whether this process is the one that tells.
  bool Claim();

  std::vector<Zone> zones_;  // not empty
  bool claimed_ = false;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENERGY_HOST_METER_H_
