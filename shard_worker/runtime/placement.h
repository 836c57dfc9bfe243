#ifndef FACET_SHARD_WORKER_RUNTIME_PLACEMENT_H_
#define FACET_SHARD_WORKER_RUNTIME_PLACEMENT_H_

// Where on its host a rank computes: which processors its threads run on, and which NUMA node its
// weights, keys and values lie on. Memory that a rank writes itself lies where the writing thread
// runs; packed weights that it maps are moved.

#include <cstddef>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "shard_worker/runtime/host_topology.h"

namespace facet {

enum class Pinning {
  kOff,
  kNode,   // a rank's threads stay on its NUMA node
  kCores,  // each thread has a core of its own, of one node where that fits
  // Cores where the host's ranks take most of them, else nodes if there are several, else off.
  kAuto,
};

// Which of the processes that share this one's processors it is; all have as many threads.
struct HostShare {
  int index = 0;
  int count = 0;  // 0: nobody said
};

struct PlacementOptions {
  Pinning pinning = Pinning::kOff;
  HostShare share;
};

struct PlacementPlan {
  Pinning pinning = Pinning::kOff;  // never kAuto
  // What each thread may run on; empty with kOff.
  std::vector<std::vector<int>> processors;
  // The NUMA node of all of them, of several that the host has; else -1.
  int node = -1;
  std::vector<int> node_processors;  // all that may be used of that node
  std::string why;                   // a sentence for the log
};

// Every process of the host computes the same plan for all, and takes its own. Ranks take turns at
// the nodes, each on the one that has most cores left; second hardware threads of cores go last.
// FailedPrecondition where pinning is asked for and impossible.
// REQUIRES: threads >= 1; the share's index is in [0, count), or count is 0.
absl::StatusOr<PlacementPlan> PlanPlacement(std::span<const HostCore> cores,
                                            const PlacementOptions& options, int threads);

// The plan for this process, and what carries it out.
class Placement {
 public:
  // Binds nothing yet. With kAuto, a host that cannot be looked at means kOff.
  static absl::StatusOr<std::unique_ptr<Placement>> Make(const PlacementOptions& options,
                                                         int threads);

  const PlacementPlan& plan() const { return plan_; }

  // Any thread: binds the calling one, which computes as the rank's thread `thread` from now on.
  // Where the system refuses, it computes where it is.
  void Bind(int thread) const;
  // Any thread: Bind(0), once for each thread that calls; cheap from then on.
  void BindCaller() const;
  // Moves memory that this rank alone maps to its node.
  void Move(std::span<const std::byte> range) const;

  // While it lives, the calling thread, and those that it starts, run on the rank's node.
  class OnNode {
   public:
    explicit OnNode(const Placement& placement);
    ~OnNode();
    OnNode(const OnNode&) = delete;
    OnNode& operator=(const OnNode&) = delete;

   private:
    const Placement& placement_;
    std::vector<int> before_;  // what the thread could run on; empty where nothing was done
  };

 private:
  Placement(std::optional<HostTopology> host, PlacementPlan plan)
      : host_(std::move(host)), plan_(std::move(plan)) {}

  const std::optional<HostTopology> host_;  // none with kOff
  const PlacementPlan plan_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_RUNTIME_PLACEMENT_H_
