#ifndef FACET_ROUTER_CORE_RUNNING_TABLE_H_
#define FACET_ROUTER_CORE_RUNNING_TABLE_H_

// The sequences that are on groups, found by the number of their submission, by group and by
// tenant. Not thread-safe; the router core owns it.

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "base/ids.h"
#include "router/core/live_request.h"
#include "router/core/tenant_shares.h"

namespace facet {

class RunningTable {
 public:
  using YoungestFirst = std::set<SequenceId, std::greater<>>;

  // REQUIRES: its sequence's number is new and greater than all before.
  void Add(const SequencePlace& place);
  // REQUIRES: it has been added, and its sequence's number is the same as then.
  void Remove(const SequencePlace& place);

  std::optional<SequencePlace> Find(SequenceId number) const;
  // By number.
  std::vector<SequencePlace> On(GroupId group) const;
  const YoungestFirst& Of(TenantSlot tenant) const;

  int64_t size() const { return static_cast<int64_t>(places_.size()); }

 private:
  absl::flat_hash_map<SequenceId, SequencePlace> places_;
  std::vector<YoungestFirst> tenants_;  // by slot
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_RUNNING_TABLE_H_
