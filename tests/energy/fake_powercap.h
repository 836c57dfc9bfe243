#ifndef FACET_TESTS_ENERGY_FAKE_POWERCAP_H_
#define FACET_TESTS_ENERGY_FAKE_POWERCAP_H_

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "shard_worker/energy/host_meter.h"
#include "tests/base/temp_folder.h"

namespace facet::testing {

// A folder like /sys/class/powercap.
class FakePowercap {
 public:
  static constexpr uint64_t kRange = 262'143'328'850;  // as real packages have it

  HostMeterOptions options() const { return {.folder = folder_.File("")}; }

  void AddZone(std::string_view entry, std::string_view name, uint64_t microjoules) {
    std::filesystem::create_directory(folder_.File(entry));
    Write(entry, "name", name);
    Write(entry, "max_energy_range_uj", std::to_string(kRange));
    Count(entry, microjoules);
  }
  void Count(std::string_view entry, uint64_t microjoules) {
    Write(entry, "energy_uj", std::to_string(microjoules));
  }
  // Attributes of sysfs end with a newline, and keep their place.
  void Write(std::string_view entry, std::string_view attribute, std::string_view value) {
    std::ofstream file(folder_.File(std::string(entry) + "/" + std::string(attribute)));
    file << value << '\n';
  }
  void Remove(std::string_view entry, std::string_view attribute) {
    std::filesystem::remove(folder_.File(std::string(entry) + "/" + std::string(attribute)));
  }

 private:
  const TempFolder folder_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_ENERGY_FAKE_POWERCAP_H_
