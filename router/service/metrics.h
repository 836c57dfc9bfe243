#ifndef FACET_ROUTER_SERVICE_METRICS_H_
#define FACET_ROUTER_SERVICE_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "router/core/router_core.h"

namespace facet {

// The router's metrics. Thread-safe, but for Publish(), which one thread calls. The registry owns
// them and must outlive this.
class RouterMetrics {
 public:
  // Tenants with labels of their own; the others are "other".
  static constexpr size_t kTenantsMax = 16;

  explicit RouterMetrics(prometheus::Registry& registry);

  // A request has ended, or was refused; by its status.
  void CountRequest(absl::StatusCode outcome);
  // Gauges and counters that the core keeps; called now and then. `tenants`: those that have had
  // most first.
  void Publish(const RouterCoreStats& stats, const RouterCoreCounters& counters,
               std::span<const TenantStats> tenants, int ready_groups);

  prometheus::Counter& prompt_tokens;
  prometheus::Counter& output_tokens;
  prometheus::Counter& resumed_requests;
  prometheus::Counter& slow_readers_dropped;
  prometheus::Histogram& first_token_s;       // from arrival to the request's first token
  prometheus::Histogram& per_output_token_s;  // of a choice, after its first
  prometheus::Histogram& end_to_end_s;
  prometheus::Histogram& queue_s;          // of a choice, router and leader together
  prometheus::Histogram& migration_gap_s;  // from the last token before one to the first after it

 private:
  // Makes `family` show exactly `values`, by tenant.
  class TenantGauges {
   public:
    TenantGauges(prometheus::Registry& registry, const char* name, const char* help);
    void Show(const std::map<std::string, double>& values);

   private:
    prometheus::Family<prometheus::Gauge>& family_;
    std::map<std::string, prometheus::Gauge*> gauges_;
  };
  void PublishTenants(std::span<const TenantStats> tenants);

  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Family<prometheus::Counter>& rejections_;
  prometheus::Family<prometheus::Counter>& expired_;
  // What Publish() shows, and where it is.
  std::vector<std::pair<prometheus::Gauge*, int64_t RouterCoreStats::*>> gauges_;
  std::vector<std::pair<prometheus::Counter*, int64_t RouterCoreCounters::*>> counters_;
  prometheus::Gauge& ready_groups_;
  TenantGauges tenant_prompt_tokens_;
  TenantGauges tenant_output_tokens_;
  TenantGauges tenant_queued_requests_;
  TenantGauges tenant_running_sequences_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_METRICS_H_
