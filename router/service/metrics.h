#ifndef FACET_ROUTER_SERVICE_METRICS_H_
#define FACET_ROUTER_SERVICE_METRICS_H_

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <memory>

#include "absl/status/status.h"
#include "router/core/router_core.h"

namespace facet {

// The router's metrics. Thread-safe. The registry owns them and must outlive this.
class RouterMetrics {
 public:
  explicit RouterMetrics(prometheus::Registry& registry);

  // A request has ended, or was refused; by its status.
  void CountRequest(absl::StatusCode outcome);
  // Gauges and counters that the core keeps; called now and then.
  void Publish(const RouterCoreStats& stats, const RouterCoreCounters& counters, int ready_groups);

  prometheus::Counter& prompt_tokens;
  prometheus::Counter& output_tokens;
  prometheus::Histogram& first_token_s;       // from arrival to the request's first token
  prometheus::Histogram& per_output_token_s;  // of a choice, after its first
  prometheus::Histogram& end_to_end_s;
  prometheus::Histogram& queue_s;  // of a choice, router and leader together

 private:
  prometheus::Family<prometheus::Counter>& requests_;
  prometheus::Gauge& queued_requests_;
  prometheus::Gauge& queued_tokens_;
  prometheus::Gauge& live_requests_;
  prometheus::Gauge& running_sequences_;
  prometheus::Gauge& interrupted_sequences_;
  prometheus::Gauge& ready_groups_;
  prometheus::Counter& resubmissions_;
  prometheus::Counter& pauses_;
  prometheus::Counter& poisoned_;
  prometheus::Counter& duplicate_tokens_;
  prometheus::Counter& gaps_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_METRICS_H_
