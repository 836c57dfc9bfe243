#include "tests/simulation/fairness_auditor.h"

#include <algorithm>
#include <cmath>

namespace facet::sim {

int64_t FairnessAuditor::ServiceOf(const TenantStats& tenant) {
  const auto price = [&tenant](double cost) {
    return std::max<int64_t>(1, std::llround(1000 * cost / tenant.weight));
  };
  return price(options_.prompt_cost) * tenant.prompt_tokens +
         price(options_.output_cost) * outputs_[tenant.name];
}

void FairnessAuditor::Take(const std::vector<TenantStats>& tenants) {
  std::vector<Waiting> waiting;
  for (const TenantStats& tenant : tenants) {
    if (tenant.queued_requests == 0) continue;
    waiting.push_back({tenant.name, ServiceOf(tenant), tenant.gap_bound});
  }
  std::erase_if(limits_, [&](const auto& entry) {
    const auto waits = [&](const std::string& name) {
      return left_[name] < queued_[name] &&
             std::any_of(waiting.begin(), waiting.end(),
                         [&](const Waiting& tenant) { return tenant.name == name; });
    };
    return !waits(entry.first.first) || !waits(entry.first.second);
  });
  left_.clear();
  for (const TenantStats& tenant : tenants) queued_[tenant.name] = tenant.queued_requests;
  for (const Waiting& a : waiting) {
    for (const Waiting& b : waiting) {
      if (a.name != b.name) TakePair(a, b);
    }
  }
}

void FairnessAuditor::TakePair(const Waiting& a, const Waiting& b) {
  const int64_t lead = a.service - b.service;
  const auto [limit, fresh] = limits_.try_emplace({a.name, b.name}, lead + b.bound);
  if (fresh) ++stage_->sights.fair_pairs;
  limit->second = std::min(limit->second, lead + b.bound);
  stage_->Require(lead - a.bound <= limit->second,
                  "{}: tenant {} got {} more than tenant {} while both waited, {} beyond the bound",
                  router_, a.name, lead, b.name, lead - a.bound - limit->second);
}

}  // namespace facet::sim
