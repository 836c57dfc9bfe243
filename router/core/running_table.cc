#include "router/core/running_table.h"

#include <algorithm>

#include "base/check.h"

namespace facet {

void RunningTable::Add(const SequencePlace& place) {
  const SequenceId number = place.sequence().number;
  const bool fresh = places_.emplace(number, place).second;
  FACET_CHECK(fresh, "sequence {} runs already", number.value);
  const auto tenant = static_cast<size_t>(place.request->tenant);
  if (tenant >= tenants_.size()) tenants_.resize(tenant + 1);
  tenants_[tenant].insert(tenants_[tenant].begin(), number);
}

void RunningTable::Remove(const SequencePlace& place) {
  const SequenceId number = place.sequence().number;
  const size_t gone = places_.erase(number);
  FACET_CHECK(gone == 1, "sequence {} does not run", number.value);
  tenants_[static_cast<size_t>(place.request->tenant)].erase(number);
}

std::optional<SequencePlace> RunningTable::Find(SequenceId number) const {
  const auto found = places_.find(number);
  if (found == places_.end()) return std::nullopt;
  return found->second;
}

std::vector<SequencePlace> RunningTable::On(GroupId group) const {
  std::vector<SequencePlace> found;
  for (const auto& [number, place] : places_) {
    if (place.sequence().group == group) found.push_back(place);
  }
  // The map's order is not the same in every run.
  std::sort(found.begin(), found.end(), [](const SequencePlace& a, const SequencePlace& b) {
    return a.sequence().number < b.sequence().number;
  });
  return found;
}

const RunningTable::YoungestFirst& RunningTable::Of(TenantSlot tenant) const {
  static const YoungestFirst none;
  const auto slot = static_cast<size_t>(tenant);
  return slot < tenants_.size() ? tenants_[slot] : none;
}

}  // namespace facet
