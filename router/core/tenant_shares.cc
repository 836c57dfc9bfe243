#include "router/core/tenant_shares.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr double kUnit = 1000;

int64_t Price(double cost, double weight) {
  return std::max<int64_t>(1, std::llround(kUnit * cost / weight));
}

}  // namespace

std::optional<TenantSlot> TenantShares::Enter(std::string_view name) {
  if (const auto found = slots_.find(absl::string_view(name.data(), name.size()));
      found != slots_.end()) {
    Tenant& tenant = At(found->second);
    if (tenant.live++ == 0) idle_.erase({tenant.counter, found->second});
    return found->second;
  }
  const std::optional<TenantSlot> slot = FreeSlot();
  if (!slot) return std::nullopt;
  const auto named = options_.weights.find(name);
  const double weight = named == options_.weights.end() ? 1 : named->second;
  FACET_CHECK(weight > 0, "the weight of tenant `{}` is {}", name, weight);
  At(*slot) = {.name = std::string(name),
               .weight = weight,
               .prompt_price = Price(options_.prompt_cost, weight),
               .output_price = Price(options_.output_cost, weight),
               .counter = floor_,
               .live = 1};
  slots_.emplace(At(*slot).name, *slot);
  return slot;
}

std::optional<TenantSlot> TenantShares::FreeSlot() {
  if (slots() < options_.tenants_max) {
    tenants_.emplace_back();
    return slots() - 1;
  }
  if (idle_.empty()) return std::nullopt;
  const TenantSlot slot = idle_.begin()->second;
  idle_.erase(idle_.begin());
  slots_.erase(At(slot).name);
  return slot;
}

void TenantShares::Leave(TenantSlot slot) {
  Tenant& tenant = At(slot);
  FACET_CHECK(tenant.live > 0);
  if (--tenant.live == 0) idle_.emplace(tenant.counter, slot);
}

void TenantShares::Lift(TenantSlot slot, std::optional<int64_t> least) {
  Tenant& tenant = At(slot);
  if (least) floor_ = std::max(floor_, *least);
  if (tenant.counter >= floor_) return;
  tenant.counter = floor_;
  tenant.gap_bound = tenant.output_price * tenant.promised;
}

void TenantShares::ChargePlacement(TenantSlot slot, int64_t prompt_tokens, int64_t output_tokens,
                                   bool chosen) {
  Tenant& tenant = At(slot);
  if (chosen) {
    floor_ = tenant.counter;
    tenant.gap_bound = tenant.output_price * tenant.promised;
  }
  tenant.promised += output_tokens;
  tenant.gap_bound += tenant.prompt_price * prompt_tokens + tenant.output_price * output_tokens;
  tenant.counter += tenant.prompt_price * prompt_tokens;
  tenant.prompt_tokens += prompt_tokens;
}

void TenantShares::ChargeOutput(TenantSlot slot, int64_t tokens) {
  Tenant& tenant = At(slot);
  tenant.promised -= tokens;
  tenant.counter += tenant.output_price * tokens;
  tenant.output_tokens += tokens;
}

void TenantShares::NoteLength(TenantSlot slot, int64_t output_tokens) {
  std::optional<int64_t>& mean = At(slot).mean_length;
  const int64_t length = 1000 * output_tokens;
  mean = mean ? *mean + (length - *mean) / 8 : length;
}

int64_t TenantShares::ExpectedOutput(TenantSlot slot, int64_t max_tokens) const {
  const std::optional<int64_t>& mean = At(slot).mean_length;
  return mean ? std::min(*mean / 1000, max_tokens) : max_tokens;
}

int64_t TenantShares::CostOf(int64_t prompt_tokens, int64_t output_tokens) const {
  return Price(options_.prompt_cost, 1) * prompt_tokens +
         Price(options_.output_cost, 1) * output_tokens;
}

TenantStats TenantShares::Stats(TenantSlot slot) const {
  const Tenant& tenant = At(slot);
  return {.name = tenant.name,
          .weight = tenant.weight,
          .counter = tenant.counter,
          .gap_bound = tenant.gap_bound,
          .live_requests = tenant.live,
          .prompt_tokens = tenant.prompt_tokens,
          .output_tokens = tenant.output_tokens};
}

absl::Status TenantShares::Check() const {
  if (slots() > options_.tenants_max || slots_.size() != tenants_.size()) {
    return Internal("{} tenants in {} slots, at most {}", slots_.size(), slots(),
                    options_.tenants_max);
  }
  size_t idle = 0;
  for (TenantSlot slot = 0; slot < slots(); ++slot) {
    const Tenant& tenant = At(slot);
    if (tenant.live < 0 || tenant.promised < 0) {
      return Internal("tenant `{}` has {} live requests and {} promised tokens", tenant.name,
                      tenant.live, tenant.promised);
    }
    if (tenant.live == 0) {
      ++idle;
      if (tenant.promised != 0 || !idle_.contains({tenant.counter, slot})) {
        return Internal("tenant `{}` is idle and not listed so, or has {} promised tokens",
                        tenant.name, tenant.promised);
      }
    }
    if (tenant.counter - floor_ > tenant.gap_bound) {
      return Internal("tenant `{}` is {} above the floor, its bound is {}", tenant.name,
                      tenant.counter - floor_, tenant.gap_bound);
    }
  }
  if (idle != idle_.size()) return Internal("{} tenants idle, {} listed", idle, idle_.size());
  return absl::OkStatus();
}

}  // namespace facet
