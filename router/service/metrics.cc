#include "router/service/metrics.h"

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

}  // namespace

RouterMetrics::RouterMetrics(prometheus::Registry& registry)
    : prompt_tokens(AddCounter(registry, "facet_router_prompt_tokens_total",
                               "Prompt tokens of requests that were answered.")),
      output_tokens(AddCounter(registry, "facet_router_output_tokens_total",
                               "Output tokens sent to clients.")),
      first_token_s(AddHistogram(registry, "facet_router_time_to_first_token_seconds",
                                 "From a request's arrival to its first token.", kSeconds)),
      per_output_token_s(AddHistogram(registry, "facet_router_time_per_output_token_seconds",
                                      "Mean time between the tokens of a choice.", kTokenSeconds)),
      end_to_end_s(AddHistogram(registry, "facet_router_request_seconds",
                                "From a request's arrival to its end.", kSeconds)),
      queue_s(AddHistogram(registry, "facet_router_queue_seconds",
                           "From a request's arrival to a choice's first step.", kSeconds)),
      requests_(prometheus::BuildCounter()
                    .Name("facet_router_requests_total")
                    .Help("Requests that have ended, by outcome.")
                    .Register(registry)),
      queued_requests_(
          AddGauge(registry, "facet_router_queued_requests", "Requests that wait for a group.")),
      queued_tokens_(AddGauge(registry, "facet_router_queued_prompt_tokens",
                              "Prompt tokens that wait for a group.")),
      live_requests_(AddGauge(registry, "facet_router_requests", "Requests alive.")),
      running_sequences_(
          AddGauge(registry, "facet_router_running_sequences", "Sequences that a group has.")),
      interrupted_sequences_(AddGauge(registry, "facet_router_interrupted_sequences",
                                      "Sequences that wait for a group to go on.")),
      ready_groups_(AddGauge(registry, "facet_router_ready_groups", "Groups that take requests.")),
      resubmissions_(AddCounter(registry, "facet_router_resubmissions_total",
                                "Sequences that went on in another group.")),
      pauses_(AddCounter(registry, "facet_router_pauses_total",
                         "Requests paused because their client read too slowly.")),
      poisoned_(AddCounter(registry, "facet_router_poisoned_sequences_total",
                           "Sequences that ended because too many groups failed under them.")),
      duplicate_tokens_(AddCounter(registry, "facet_router_duplicate_tokens_total",
                                   "Tokens dropped because they had been delivered.")),
      gaps_(AddCounter(registry, "facet_router_token_gaps_total",
                       "Times that a leader left tokens out.")) {}

void RouterMetrics::CountRequest(absl::StatusCode outcome) {
  requests_.Add({{"outcome", LabelOf(outcome)}}).Increment();
}

void RouterMetrics::Publish(const RouterCoreStats& stats, const RouterCoreCounters& counters,
                            int ready_groups) {
  queued_requests_.Set(static_cast<double>(stats.queued_requests));
  queued_tokens_.Set(static_cast<double>(stats.queued_tokens));
  live_requests_.Set(static_cast<double>(stats.requests));
  running_sequences_.Set(static_cast<double>(stats.running_sequences));
  interrupted_sequences_.Set(static_cast<double>(stats.interrupted_sequences));
  ready_groups_.Set(ready_groups);
  RaiseTo(resubmissions_, counters.resubmissions);
  RaiseTo(pauses_, counters.pauses);
  RaiseTo(poisoned_, counters.poisoned);
  RaiseTo(duplicate_tokens_, counters.duplicate_tokens);
  RaiseTo(gaps_, counters.gaps);
}

}  // namespace facet
