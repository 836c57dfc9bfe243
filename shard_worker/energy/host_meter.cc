#include "shard_worker/energy/host_meter.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

// The package's zones also appear as "intel-rapl-mmio:0", another path to the same counters.
constexpr std::string_view kZonePrefix = "intel-rapl:";

// The first line of an attribute; nullopt where it cannot be read.
std::optional<std::string> ReadLine(int file) {
  std::array<char, 128> space = {};
  const ssize_t bytes = pread(file, space.data(), space.size(), 0);
  if (bytes < 0) return std::nullopt;
  const std::string_view text(space.data(), static_cast<size_t>(bytes));
  return std::string(text.substr(0, text.find('\n')));
}

std::optional<std::string> ReadLine(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return std::nullopt;
  std::optional<std::string> line = ReadLine(file);
  close(file);
  return line;
}

std::optional<uint64_t> NumberIn(const std::optional<std::string>& line) {
  uint64_t number = 0;
  if (!line) return std::nullopt;
  const auto [end, error] = std::from_chars(line->data(), line->data() + line->size(), number);
  if (error != std::errc() || end != line->data() + line->size()) return std::nullopt;
  return number;
}

// "intel-rapl:0" of "intel-rapl:0:2"; empty for a zone that is within no other.
std::string_view ParentOf(std::string_view entry) {
  const size_t colon = entry.rfind(':');
  return colon < kZonePrefix.size() ? std::string_view() : entry.substr(0, colon);
}

// {entry: its name} of what is counted once: packages, and the memory beside them. Cores and
// graphics are part of their package, a platform ("psys") has all of them in it.
std::map<std::string, std::string> FindZones(const std::string& folder) {
  std::map<std::string, std::string> packages, memories;
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(folder, error)) {
    const std::string entry = item.path().filename();
    if (!entry.starts_with(kZonePrefix)) continue;
    const std::string name = ReadLine(item.path() / "name").value_or("");
    const bool within = !ParentOf(entry).empty();
    if (!within && name.starts_with("package-")) packages.emplace(entry, name);
    if (within && name == "dram") memories.emplace(entry, name);
  }
  std::map<std::string, std::string> zones = packages;
  for (const auto& [entry, name] : memories) {
    const auto package = packages.find(std::string(ParentOf(entry)));
    if (package != packages.end()) zones.emplace(entry, package->second + "/" + name);
  }
  return zones;
}

// Counted up since `last`, in microjoules; nullopt where the counter begins anew nobody knows when.
std::optional<uint64_t> Difference(uint64_t now, uint64_t last, uint64_t range) {
  if (now >= last) return now - last;
  if (range < last) return std::nullopt;
  return range - last + now;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HostMeter>> HostMeter::Open(const HostMeterOptions& options) {
  std::unique_ptr<HostMeter> meter(new HostMeter);
  const std::map<std::string, std::string> zones = FindZones(options.folder);
  for (const auto& [entry, name] : zones) {
    if (static_cast<int>(meter->zones_.size()) >= options.zones_max) break;
    const std::string path = options.folder + "/" + entry;
    Zone zone;
    zone.file = open((path + "/energy_uj").c_str(), O_RDONLY | O_CLOEXEC);
    if (zone.file < 0) continue;
    zone.name = name;
    zone.range = NumberIn(ReadLine(path + "/max_energy_range_uj")).value_or(0);
    meter->zones_.push_back(std::move(zone));
  }
  if (zones.empty()) return NotFound("{} has no processor's energy counter", options.folder);
  if (meter->zones_.empty()) {
    return MakeStatus(absl::StatusCode::kPermissionDenied,
                      fmt::format("{} may not be read", options.folder));
  }
  return meter;
}

HostMeter::~HostMeter() {
  for (const Zone& zone : zones_) close(zone.file);  // and with it the lock
}

bool HostMeter::Claim() {
  if (!claimed_) claimed_ = flock(zones_.front().file, LOCK_EX | LOCK_NB) == 0;
  return claimed_;
}

std::vector<ZoneEnergy> HostMeter::Read() {
  std::vector<ZoneEnergy> energies;
  if (!Claim()) return energies;
  for (Zone& zone : zones_) {
    const std::optional<uint64_t> now = NumberIn(ReadLine(zone.file));
    if (!now) continue;
    const std::optional<uint64_t> before = std::exchange(zone.last, now);
    const auto counted = before ? Difference(*now, *before, zone.range) : std::nullopt;
    if (counted) energies.push_back({zone.name, static_cast<double>(*counted) * 1e-6});
  }
  return energies;
}

}  // namespace facet
