#include "tests/cluster/fault_injector.h"

#include <fmt/format.h>
#include <signal.h>

#include <thread>

namespace facet::testing {
namespace {

constexpr std::chrono::milliseconds kPoll{10};

class Injector {
 public:
  Injector(const FaultPlan& plan, LaunchedCluster& cluster, const GroupWatch& groups)
      : plan_(plan), cluster_(cluster), groups_(groups), random_(plan.seed) {}

  std::vector<Fault> Run() {
    const auto start = std::chrono::steady_clock::now();
    auto next_rank = start + plan_.first_rank_fault;
    auto next_router = start + plan_.first_router_fault;
    while (GoesOn(std::chrono::steady_clock::now() - start)) {
      const auto now = std::chrono::steady_clock::now();
      // From now: after one that had to wait the next keeps its distance.
      if (now >= next_rank && DisturbRank()) next_rank = now + plan_.rank_period;
      if (plan_.router_faults && now >= next_router && KillRouter()) {
        next_router += plan_.router_period;
      }
      std::this_thread::sleep_for(kPoll);
    }
    return std::move(faults_);
  }

 private:
  bool GoesOn(std::chrono::steady_clock::duration since_start) const {
    if (since_start < plan_.duration) return true;
    return rank_faults_ < plan_.duration / plan_.rank_period && since_start < 5 * plan_.duration;
  }

  // A random rank of a random group, if that has enough to lose.
  bool DisturbRank() {
    const int group = std::uniform_int_distribution(0, groups_.groups() - 1)(random_);
    const int running = groups_.running(group);
    if (!groups_.ready(group) || running < plan_.running_min) return false;
    const ServerState victim = RandomServer(fmt::format("worker-{}-", group));
    if (victim.pid == 0) return false;
    const bool stop = rank_faults_++ % plan_.stopped_every == 1;
    bool others_ready = false;
    for (int i = 0; i < groups_.groups(); ++i) others_ready |= i != group && groups_.ready(i);
    Disturb({.kind = stop ? FaultKind::kRankStopped : FaultKind::kRankKilled,
             .group = group,
             .running = running,
             .others_ready = others_ready},
            victim);
    return true;
  }

  bool KillRouter() {
    const ServerState victim = RandomServer("router-");
    if (victim.pid == 0) return false;
    Disturb({.kind = FaultKind::kRouterKilled}, victim);
    return true;
  }

  void Disturb(Fault fault, const ServerState& victim) {
    fault.victim = victim.name;
    fault.at = std::chrono::steady_clock::now();
    kill(victim.pid, fault.kind == FaultKind::kRankStopped ? SIGSTOP : SIGKILL);
    faults_.push_back(fault);
  }

  ServerState RandomServer(const std::string& prefix) {
    std::vector<ServerState> candidates;
    for (ServerState& server : cluster_.Servers()) {
      if (server.name.starts_with(prefix)) candidates.push_back(std::move(server));
    }
    return candidates.at(std::uniform_int_distribution<size_t>(0, candidates.size() - 1)(random_));
  }

  const FaultPlan& plan_;
  LaunchedCluster& cluster_;
  const GroupWatch& groups_;
  std::mt19937_64 random_;
  int rank_faults_ = 0;
  std::vector<Fault> faults_;
};

}  // namespace

std::vector<Fault> InjectFaults(const FaultPlan& plan, LaunchedCluster& cluster,
                                const GroupWatch& groups) {
  return Injector(plan, cluster, groups).Run();
}

}  // namespace facet::testing
