#ifndef FACET_TESTS_SIMULATION_FAIRNESS_AUDITOR_H_
#define FACET_TESTS_SIMULATION_FAIRNESS_AUDITOR_H_

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "router/core/router_core.h"
#include "tests/simulation/stage.h"

namespace facet::sim {

// Measures what each tenant got from one router, without the counters that the router decides by.
// Between any two moments s < t of a time in which tenants a and b have both waited without a
// break, a may have got more than b by at most bound(b) at s + bound(a) at t, the bounds being
// those that the router states (router/core/tenant_shares.h): at s the counter of b was at most
// bound(b) ahead, at t that of a is at most bound(a) ahead, and between them counters rose by
// service alone.
class FairnessAuditor {
 public:
  FairnessAuditor(Stage* stage, std::string router, const TenantSharesOptions& options)
      : stage_(stage), router_(std::move(router)), options_(options) {}

  // Output tokens have come for the tenant.
  void Output(const std::string& tenant, int64_t tokens) { outputs_[tenant] += tokens; }
  // A sequence of the tenant has left the queue. As many as waited: the tenant may have stopped
  // waiting, and begun anew, before anybody could look.
  void Left(const std::string& tenant) { ++left_[tenant]; }
  // After everything that the core was told, with all tenants that it remembers.
  void Take(const std::vector<TenantStats>& tenants);

 private:
  struct Waiting {
    std::string name;
    int64_t service = 0;  // in the unit of the core's counters
    int64_t bound = 0;
  };
  void TakePair(const Waiting& a, const Waiting& b);
  int64_t ServiceOf(const TenantStats& tenant);

  Stage* const stage_;
  const std::string router_;
  const TenantSharesOptions options_;
  std::map<std::string, int64_t> outputs_;
  std::map<std::string, int64_t> left_;    // since the last look
  std::map<std::string, int64_t> queued_;  // at the last look
  // By a and b, for as long as both wait: the least that a's lead may not pass by more than
  // bound(a).
  std::map<std::pair<std::string, std::string>, int64_t> limits_;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_FAIRNESS_AUDITOR_H_
