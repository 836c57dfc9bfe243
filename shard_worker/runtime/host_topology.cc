#include "shard_worker/runtime/host_topology.h"

#include <hwloc.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

struct FreeBitmap {
  void operator()(hwloc_bitmap_s* set) const { hwloc_bitmap_free(set); }
};
using Bitmap = std::unique_ptr<hwloc_bitmap_s, FreeBitmap>;

Bitmap SetOf(std::span<const int> members) {
  Bitmap set(hwloc_bitmap_alloc());
  for (const int member : members) hwloc_bitmap_set(set.get(), static_cast<unsigned>(member));
  return set;
}

std::vector<int> MembersOf(hwloc_const_bitmap_t set) {
  std::vector<int> members;
  for (int i = hwloc_bitmap_first(set); i >= 0; i = hwloc_bitmap_next(set, i)) {
    members.push_back(i);
  }
  return members;
}

absl::Status SystemError(std::string_view what) {
  return Unavailable("{}: {}", what, std::strerror(errno));
}

// The first node with the core in its neighbourhood: where a processor has memory of several kinds,
// the ordinary one comes first. 0 where nobody says.
int NodeOf(hwloc_topology_t topology, hwloc_const_cpuset_t core) {
  hwloc_obj_t node = nullptr;
  while ((node = hwloc_get_next_obj_by_type(topology, HWLOC_OBJ_NUMANODE, node)) != nullptr) {
    if (hwloc_bitmap_intersects(node->cpuset, core)) return static_cast<int>(node->os_index);
  }
  return 0;
}

}  // namespace

void HostTopology::Destroy::operator()(hwloc_topology* topology) const {
  hwloc_topology_destroy(topology);
}

HostTopology::HostTopology(hwloc_topology* topology) : topology_(topology) {}
HostTopology::HostTopology(HostTopology&&) noexcept = default;
HostTopology& HostTopology::operator=(HostTopology&&) noexcept = default;
HostTopology::~HostTopology() = default;

absl::StatusOr<HostTopology> HostTopology::Load() {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return SystemError("the host's topology");
  HostTopology host(topology);
  if (hwloc_topology_load(topology) != 0) return SystemError("the host's topology");
  return host;
}

absl::StatusOr<HostTopology> HostTopology::Synthetic(const std::string& description) {
  hwloc_topology_t topology = nullptr;
  if (hwloc_topology_init(&topology) != 0) return SystemError("a topology");
  HostTopology host(topology);
  if (hwloc_topology_set_synthetic(topology, description.c_str()) != 0) {
    return InvalidArgument("'{}' describes no topology", description);
  }
  if (hwloc_topology_load(topology) != 0) return SystemError("a topology");
  return host;
}

std::vector<int> HostTopology::AllowedProcessors() const {
  hwloc_topology_t topology = topology_.get();
  const Bitmap set(hwloc_bitmap_dup(hwloc_topology_get_allowed_cpuset(topology)));
  const Bitmap bound(hwloc_bitmap_alloc());
  if (hwloc_topology_is_thissystem(topology) &&
      hwloc_get_cpubind(topology, bound.get(), HWLOC_CPUBIND_THREAD) == 0) {
    hwloc_bitmap_and(set.get(), set.get(), bound.get());
  }
  return MembersOf(set.get());
}

std::vector<HostCore> HostTopology::Cores(std::span<const int> allowed) const {
  hwloc_topology_t topology = topology_.get();
  const Bitmap wanted = SetOf(allowed);
  const Bitmap mine(hwloc_bitmap_alloc());
  // Some virtual machines do not say which processors are one core: each is then taken for one.
  const bool has_cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE) > 0;
  const hwloc_obj_type_t type = has_cores ? HWLOC_OBJ_CORE : HWLOC_OBJ_PU;
  std::vector<HostCore> cores;
  hwloc_obj_t object = nullptr;
  while ((object = hwloc_get_next_obj_by_type(topology, type, object)) != nullptr) {
    hwloc_bitmap_and(mine.get(), object->cpuset, wanted.get());
    if (hwloc_bitmap_iszero(mine.get())) continue;
    cores.push_back({MembersOf(mine.get()), NodeOf(topology, object->cpuset)});
  }
  return cores;
}

absl::Status HostTopology::BindThread(std::span<const int> processors) const {
  const Bitmap set = SetOf(processors);
  if (hwloc_set_cpubind(topology_.get(), set.get(), HWLOC_CPUBIND_THREAD) != 0) {
    return SystemError("binding a thread to its processors");
  }
  return absl::OkStatus();
}

absl::Status HostTopology::MoveMemory(std::span<const std::byte> range, int node) const {
  const Bitmap nodes = SetOf({&node, 1});
  if (hwloc_set_area_membind(topology_.get(), range.data(), range.size(), nodes.get(),
                             HWLOC_MEMBIND_BIND,
                             HWLOC_MEMBIND_BYNODESET | HWLOC_MEMBIND_MIGRATE) != 0) {
    return SystemError("moving memory to its node");
  }
  return absl::OkStatus();
}

}  // namespace facet
