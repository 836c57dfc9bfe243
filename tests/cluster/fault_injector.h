#ifndef FACET_TESTS_CLUSTER_FAULT_INJECTOR_H_
#define FACET_TESTS_CLUSTER_FAULT_INJECTOR_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "tests/cluster/group_watch.h"
#include "tests/cluster/launched_cluster.h"

namespace facet::testing {

enum class FaultKind { kRankKilled, kRankStopped, kRouterKilled };

struct Fault {
  FaultKind kind;
  GroupWatch::Time at;
  std::string victim;
  int group = -1;             // of a rank
  int running = 0;            // sequences of that group
  bool others_ready = false;  // another group was up to take them over
};

struct FaultPlan {
  std::chrono::seconds duration{30};
  std::chrono::seconds first_rank_fault{5};
  std::chrono::seconds rank_period{10};
  std::chrono::seconds first_router_fault{10};
  std::chrono::seconds router_period{30};
  bool router_faults = true;
  int running_min = 4;    // a fault waits until its group has that many sequences
  int stopped_every = 4;  // of rank faults, from the second on: SIGSTOP instead of SIGKILL
  uint64_t seed = 1;
};

// Disturbs the cluster as planned; returns when the time is over and, where groups come back
// slowly, a fault has been for each of its rank periods; at the latest after five times the time.
// The faults are in order.
std::vector<Fault> InjectFaults(const FaultPlan& plan, LaunchedCluster& cluster,
                                const GroupWatch& groups);

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_FAULT_INJECTOR_H_
