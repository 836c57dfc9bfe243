#ifndef FACET_ROUTER_CORE_TENANT_SHARES_H_
#define FACET_ROUTER_CORE_TENANT_SHARES_H_

// What each tenant has had of the groups, so that all get their shares: the Virtual Token Counters
// of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024, algorithm 2).
//
// A counter rises by the cost of a prompt when it is placed and of each output token as it arrives,
// divided by the tenant's weight; the waiting tenant with the least counter is next. A tenant that
// begins to wait is lifted to the least counter of those that wait, so time without requests buys
// nothing.
//
// The gap. `floor` is the least counter that was chosen or lifted to last; it never falls, and the
// counter of every waiting tenant is at least that. When a tenant is chosen or lifted its counter
// is the floor; until the next time it is charged at most the prompt it was chosen for and what its
// placed sequences may still emit. So of any two waiting tenants a and b, at any time,
//   counter(a) - counter(b) <= bound(a) = (prompt_cost * L + output_cost * P) / weight(a),
// with L the tokens of the prompt that it was last chosen for and P the output tokens that its
// placed sequences could still emit then; sequences that clients resume here enter without being
// chosen and add their own cost. Check() holds this at every moment.
//
// Counters are integers, in thousandths of a token's cost: sums are exact, so runs repeat.
// Not thread-safe; the router core owns it.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"

namespace facet {

struct TenantSharesOptions {
  double prompt_cost = 1;  // of a token that has to be computed
  double output_cost = 2;
  std::map<std::string, double, std::less<>> weights;  // of those not named here: 1
  int tenants_max = 4096;                              // that are remembered
};

// A remembered tenant: from 0 up. A forgotten tenant's slot goes to another.
using TenantSlot = int;

// A tenant for metrics and status.
struct TenantStats {
  std::string name;
  double weight = 1;
  int64_t counter = 0;
  int64_t gap_bound = 0;
  int64_t live_requests = 0;
  int64_t queued_requests = 0;
  int64_t running_sequences = 0;
  int64_t prompt_tokens = 0;  // charged, since the tenant is remembered
  int64_t output_tokens = 0;
};

class TenantShares {
 public:
  explicit TenantShares(TenantSharesOptions options) : options_(std::move(options)) {}

  // The tenant has one live request more. A tenant without live requests may be forgotten to make
  // room for another; nullopt if all tenants_max have some.
  std::optional<TenantSlot> Enter(std::string_view name);
  // And one less.
  void Leave(TenantSlot slot);

  // The tenant begins to wait; `least` is the least counter of those that wait, if any do.
  void Lift(TenantSlot slot, std::optional<int64_t> least);
  // A sequence of the tenant is placed for the first time: `prompt_tokens` of it have to be
  // computed and `output_tokens` may follow. `chosen`: because it was the tenant's turn.
  void ChargePlacement(TenantSlot slot, int64_t prompt_tokens, int64_t output_tokens, bool chosen);
  // Promised output has arrived.
  void ChargeOutput(TenantSlot slot, int64_t tokens);
  // A sequence of the tenant has ended on its own after so many output tokens.
  void NoteLength(TenantSlot slot, int64_t output_tokens);
  // How many output tokens a sequence may be expected to have: the mean of the tenant's latest.
  int64_t ExpectedOutput(TenantSlot slot, int64_t max_tokens) const;
  // Promised output will not come.
  void Release(TenantSlot slot, int64_t output_tokens) { At(slot).promised -= output_tokens; }

  int64_t counter(TenantSlot slot) const { return At(slot).counter; }
  // See above; in the counters' unit.
  int64_t gap_bound(TenantSlot slot) const { return At(slot).gap_bound; }
  int64_t floor() const { return floor_; }
  int64_t promised(TenantSlot slot) const { return At(slot).promised; }
  int64_t live_requests(TenantSlot slot) const { return At(slot).live; }
  double weight(TenantSlot slot) const { return At(slot).weight; }
  const std::string& name(TenantSlot slot) const { return At(slot).name; }
  int slots() const { return static_cast<int>(tenants_.size()); }

  // What tokens cost regardless of weight, in the counters' unit.
  int64_t CostOf(int64_t prompt_tokens, int64_t output_tokens) const;
  // But for queued_requests and running_sequences, which are known elsewhere.
  TenantStats Stats(TenantSlot slot) const;
  // The first invariant that does not hold.
  absl::Status Check() const;

 private:
  struct Tenant {
    std::string name;
    double weight = 1;
    int64_t prompt_price = 0;  // of a token, by the tenant's weight
    int64_t output_price = 0;
    int64_t counter = 0;
    int64_t gap_bound = 0;
    std::optional<int64_t> mean_length;  // of outputs, in thousandths of a token
    int64_t promised = 0;                // output tokens that its placed sequences may still emit
    int64_t live = 0;                    // requests; 0: idle
    int64_t prompt_tokens = 0;
    int64_t output_tokens = 0;
  };
  Tenant& At(TenantSlot slot) { return tenants_[static_cast<size_t>(slot)]; }
  const Tenant& At(TenantSlot slot) const { return tenants_[static_cast<size_t>(slot)]; }
  std::optional<TenantSlot> FreeSlot();

  TenantSharesOptions options_;
  std::vector<Tenant> tenants_;
  absl::flat_hash_map<std::string, TenantSlot> slots_;
  std::set<std::pair<int64_t, TenantSlot>> idle_;  // by counter: the least loses least
  int64_t floor_ = 0;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_TENANT_SHARES_H_
