#ifndef FACET_SHARD_WORKER_RUNTIME_HOST_TOPOLOGY_H_
#define FACET_SHARD_WORKER_RUNTIME_HOST_TOPOLOGY_H_

// The host's cores and NUMA nodes, as hwloc sees them. Processors and nodes are numbered as the
// operating system does.

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct hwloc_topology;

namespace facet {

// A physical core, as far as this process may use it.
struct HostCore {
  std::vector<int> processors;  // its hardware threads, at least one
  int node = 0;                 // the NUMA node whose memory is nearest
};

// Thread-safe once it is loaded.
class HostTopology {
 public:
  // Of this machine.
  static absl::StatusOr<HostTopology> Load();
  // Of a machine in hwloc's notation, such as "package:2 core:8 pu:2"; for tests.
  static absl::StatusOr<HostTopology> Synthetic(const std::string& description);

  HostTopology(HostTopology&&) noexcept;
  HostTopology& operator=(HostTopology&&) noexcept;
  ~HostTopology();

  // The processors that the calling thread may run on: what control groups, containers and taskset
  // leave of the machine. Of a machine that is not this one: all.
  std::vector<int> AllowedProcessors() const;
  // The cores with at least one of these processors, and only these, in the order of the machine.
  std::vector<HostCore> Cores(std::span<const int> allowed) const;

  // Lets the calling thread run on these processors only.
  absl::Status BindThread(std::span<const int> processors) const;
  // Moves the pages of `range` that this process maps, and no other does, to a node's memory, as
  // far as it has room. They hold the same bytes.
  absl::Status MoveMemory(std::span<const std::byte> range, int node) const;

 private:
  explicit HostTopology(hwloc_topology* topology);

  struct Destroy {
    void operator()(hwloc_topology* topology) const;
  };
  std::unique_ptr<hwloc_topology, Destroy> topology_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_HOST_TOPOLOGY_H_
