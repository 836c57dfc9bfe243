#include "router/service/metrics.h"

#include <iterator>
#include <string>

namespace facet {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

prometheus::Counter& AddCounter(prometheus::Registry& registry, const char* name,
                                const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

prometheus::Gauge& AddGauge(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

prometheus::Histogram& AddHistogram(prometheus::Registry& registry, const char* name,
                                    const char* help, const Buckets& buckets) {
  return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
}

const Buckets kSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
                          1,     2.5,    5,     10,   30,    60,   120, 300,  600};
const Buckets kTokenSeconds = {0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03,
                               0.05,  0.075, 0.1,   0.15,  0.2,   0.5,  1,     5};

// "DEADLINE_EXCEEDED" becomes "deadline_exceeded".
std::string LabelOf(absl::StatusCode code) {
  std::string label = absl::StatusCodeToString(code);
  for (char& c : label) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return label;
}

void RaiseTo(prometheus::Counter& counter, int64_t value) {
  counter.Increment(static_cast<double>(value) - counter.Value());
}

prometheus::Family<prometheus::Counter>& AddFamily(prometheus::Registry& registry, const char* name,
                                                   const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry);
}

struct GaugeRow {
  const char* name;
  int64_t RouterCoreStats::*value;
  const char* help;
};
constexpr GaugeRow kGauges[] = {
    {"facet_router_requests", &RouterCoreStats::requests, "Requests alive."},
    {"facet_router_queued_requests", &RouterCoreStats::queued_requests,
     "Requests that wait for a group."},
    {"facet_router_queued_prompt_tokens", &RouterCoreStats::queued_tokens,
     "Prompt tokens that wait for a group."},
    {"facet_router_queued_bytes", &RouterCoreStats::queued_bytes,
     "Memory of requests that wait for a group."},
    {"facet_router_running_sequences", &RouterCoreStats::running_sequences,
     "Sequences that a group has."},
    {"facet_router_interrupted_sequences", &RouterCoreStats::interrupted_sequences,
     "Sequences that wait for a group to go on."},
};

struct CounterRow {
  const char* name;
  int64_t RouterCoreCounters::*value;
  const char* help;
};
constexpr CounterRow kCounters[] = {
    {"facet_router_resubmissions_total", &RouterCoreCounters::resubmissions,
     "Sequences that went on in another group."},
    {"facet_router_retries_total", &RouterCoreCounters::retries,
     "Sequences that lost their group before their first token."},
    {"facet_router_migrations_total", &RouterCoreCounters::migrations,
     "Sequences that lost their group after tokens."},
    {"facet_router_pauses_total", &RouterCoreCounters::pauses,
     "Requests paused because their client read too slowly."},
    {"facet_router_poisoned_sequences_total", &RouterCoreCounters::poisoned,
     "Sequences that ended because too many groups failed under them."},
    {"facet_router_duplicate_tokens_total", &RouterCoreCounters::duplicate_tokens,
     "Tokens dropped because they had been delivered."},
    {"facet_router_token_gaps_total", &RouterCoreCounters::gaps,
     "Times that a leader left tokens out."},
    {"facet_router_takeovers_total", &RouterCoreCounters::takeovers,
     "Requests that another stream of their client replaced."},
    {"facet_router_fairness_preemptions_total", &RouterCoreCounters::preemptions,
     "Running sequences that gave way to another tenant."},
    {"facet_router_prefix_tokens_total", &RouterCoreCounters::prefix_tokens,
     "Prompt tokens that placed sequences were expected to find cached."},
    {"facet_router_epoch_changes_total", &RouterCoreCounters::epoch_changes,
     "Groups that came back with another epoch."},
};

}  // namespace

RouterMetrics::RouterMetrics(prometheus::Registry& registry)
    : prompt_tokens(AddCounter(registry, "facet_router_prompt_tokens_total",
                               "Prompt tokens of requests that were answered.")),
      output_tokens(AddCounter(registry, "facet_router_output_tokens_total",
                               "Output tokens sent to clients.")),
      resumed_requests(AddCounter(registry, "facet_router_resumed_requests_total",
                                  "Streams that went on where an earlier one broke off.")),
      slow_readers_dropped(AddCounter(registry, "facet_router_slow_readers_dropped_total",
                                      "Calls ended because their client did not read.")),
      first_token_s(AddHistogram(registry, "facet_router_time_to_first_token_seconds",
                                 "From a request's arrival to its first token.", kSeconds)),
      per_output_token_s(AddHistogram(registry, "facet_router_time_per_output_token_seconds",
                                      "Mean time between the tokens of a choice.", kTokenSeconds)),
      end_to_end_s(AddHistogram(registry, "facet_router_request_seconds",
                                "From a request's arrival to its end.", kSeconds)),
      queue_s(AddHistogram(registry, "facet_router_queue_seconds",
                           "From a request's arrival to a choice's first step.", kSeconds)),
      migration_gap_s(AddHistogram(registry, "facet_router_migration_gap_seconds",
                                   "From the last token before a migration to the first after it.",
                                   kSeconds)),
      requests_(AddFamily(registry, "facet_router_requests_total",
                          "Requests that have ended, by outcome.")),
      rejections_(AddFamily(registry, "facet_router_rejections_total",
                            "Requests turned away, by reason, on arrival or while they waited.")),
      expired_(AddFamily(registry, "facet_router_expired_sequences_total",
                         "Sequences whose deadline passed, by what they were doing.")),
      ready_groups_(AddGauge(registry, "facet_router_ready_groups", "Groups that take requests.")),
      tenant_prompt_tokens_(registry, "facet_router_tenant_prompt_tokens",
                            "Prompt tokens that a tenant was charged."),
      tenant_output_tokens_(registry, "facet_router_tenant_output_tokens",
                            "Output tokens that a tenant was charged."),
      tenant_queued_requests_(registry, "facet_router_tenant_queued_requests",
                              "Requests of a tenant that wait for a group."),
      tenant_running_sequences_(registry, "facet_router_tenant_running_sequences",
                                "Sequences of a tenant that a group has.") {
  for (const GaugeRow& row : kGauges) {
    gauges_.emplace_back(&AddGauge(registry, row.name, row.help), row.value);
  }
  for (const CounterRow& row : kCounters) {
    counters_.emplace_back(&AddCounter(registry, row.name, row.help), row.value);
  }
}

void RouterMetrics::CountRequest(absl::StatusCode outcome) {
  requests_.Add({{"outcome", LabelOf(outcome)}}).Increment();
}

void RouterMetrics::Publish(const RouterCoreStats& stats, const RouterCoreCounters& counters,
                            std::span<const TenantStats> tenants, int ready_groups) {
  for (const auto& [gauge, value] : gauges_) gauge->Set(static_cast<double>(stats.*value));
  for (const auto& [counter, value] : counters_) RaiseTo(*counter, counters.*value);
  for (int i = 0; i < kRefusalReasons; ++i) {
    const auto reason = static_cast<RefusalReason>(i);
    const std::string name(RefusalName(reason));
    RaiseTo(rejections_.Add({{"reason", name}, {"when", "arrival"}}), counters.refusals[reason]);
    RaiseTo(rejections_.Add({{"reason", name}, {"when", "later"}}), counters.sheds[reason]);
  }
  RaiseTo(expired_.Add({{"stage", "queued"}}), counters.expired.queued);
  RaiseTo(expired_.Add({{"stage", "running"}}), counters.expired.running);
  RaiseTo(expired_.Add({{"stage", "interrupted"}}), counters.expired.interrupted);
  RaiseTo(expired_.Add({{"stage", "paused"}}), counters.expired.paused);
  ready_groups_.Set(ready_groups);
  PublishTenants(tenants);
}

void RouterMetrics::PublishTenants(std::span<const TenantStats> tenants) {
  std::map<std::string, double> prompt, output, queued, running;
  for (size_t i = 0; i < tenants.size(); ++i) {
    const TenantStats& tenant = tenants[i];
    const std::string& name = i < kTenantsMax ? tenant.name : "other";
    prompt[name] += static_cast<double>(tenant.prompt_tokens);
    output[name] += static_cast<double>(tenant.output_tokens);
    queued[name] += static_cast<double>(tenant.queued_requests);
    running[name] += static_cast<double>(tenant.running_sequences);
  }
  tenant_prompt_tokens_.Show(prompt);
  tenant_output_tokens_.Show(output);
  tenant_queued_requests_.Show(queued);
  tenant_running_sequences_.Show(running);
}

RouterMetrics::TenantGauges::TenantGauges(prometheus::Registry& registry, const char* name,
                                          const char* help)
    : family_(prometheus::BuildGauge().Name(name).Help(help).Register(registry)) {}

void RouterMetrics::TenantGauges::Show(const std::map<std::string, double>& values) {
  for (auto gauge = gauges_.begin(); gauge != gauges_.end();) {
    if (!values.contains(gauge->first)) family_.Remove(gauge->second);
    gauge = values.contains(gauge->first) ? std::next(gauge) : gauges_.erase(gauge);
  }
  for (const auto& [name, value] : values) {
    prometheus::Gauge*& gauge = gauges_[name];
    if (gauge == nullptr) gauge = &family_.Add({{"tenant", name}});
    gauge->Set(value);
  }
}

}  // namespace facet
