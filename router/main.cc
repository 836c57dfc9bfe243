// facet-router: the face of a Facet cluster to its clients.

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/synchronization/mutex.h"
#include "base/status.h"
#include "router/service/router_server.h"
#include "serving/flags.h"
#include "serving/log.h"
#include "serving/metrics_listener.h"
#include "serving/shutdown.h"

ABSL_FLAG(std::string, listen, "0.0.0.0:8470",
          "where clients connect: host:port (port 0: any free one) or unix:/path");
ABSL_FLAG(std::string, address_file, "",
          "a file to write the bound address to, for whoever started a router on port 0");
ABSL_FLAG(
    std::vector<std::string>, leaders, {},
    "the leaders of the groups of shard workers, separated by commas: host:port or unix:/path. A "
    "host name stands for all the addresses it resolves to and is looked up again every 5 s");
ABSL_FLAG(std::string, model, "",
          "the GGUF file that the groups serve (its first part, if it has several); only the "
          "vocabulary and other metadata are read");
ABSL_FLAG(std::string, model_name, "",
          "what requests call the model; default: the file's name without .gguf");
ABSL_FLAG(int, metrics_port, -1,
          "port of GET /metrics for Prometheus (0: any free one); -1: no metrics");
ABSL_FLAG(std::string, metrics_address, "0.0.0.0", "address that --metrics_port is opened on");
ABSL_FLAG(double, max_request_s, 600,
          "seconds a request may take, waiting included, where its own deadline is not shorter");
ABSL_FLAG(int64_t, queue_requests, 1024,
          "requests that may wait for a group; one more is refused with RESOURCE_EXHAUSTED");
ABSL_FLAG(int64_t, queue_tokens, 4194304,
          "prompt tokens of waiting requests (each choice counts), as above");
ABSL_FLAG(int64_t, queue_bytes, 268435456, "memory of waiting requests, as above");
ABSL_FLAG(
    std::vector<std::string>, tenant_weight, {},
    "shares of tenants, as name=weight separated by commas: while requests wait, groups serve "
    "tenants in proportion to their weights; those not named have 1");
ABSL_FLAG(double, ttft_target_ms, 0,
          "requests whose first token is expected later than this are refused while groups are "
          "busy; 0: off");
ABSL_FLAG(double, retry_percent, 20,
          "sequences that may be tried again after their group failed before their first token, in "
          "percent of the requests that come (and a burst of 256)");
ABSL_FLAG(double, group_wait_s, 30,
          "seconds that requests and interrupted answers wait while no group can take them");
ABSL_FLAG(
    double, stall_s, 30,
    "seconds that a client may leave unread what it was sent, a message of a stream or a whole "
    "answer without one, before its call is ended; a request whose stream has 64 KiB waiting is "
    "paused meanwhile");
ABSL_FLAG(int64_t, prompt_bytes_max, 4194304,
          "bytes of all prompts of one request; a token id counts four");
ABSL_FLAG(
    double, drain_s, 30,
    "on SIGTERM: seconds that running requests get to end; new ones are refused meanwhile, and "
    "what still runs then ends with UNAVAILABLE, for its client to resume at another router");
ABSL_FLAG(std::string, log_level, "info", "trace, debug, info, warning, error or off");

namespace facet {
namespace {

constexpr std::string_view kUsage =
    "facet-router takes requests from clients, tokenizes them, and has them computed by groups of\n"
    "facet-worker, whose leaders it connects to. It holds no tensor; any number of routers may\n"
    "serve the same groups.\n"
    "\n"
    "  facet-router --model=gemma3.gguf --leaders=10.0.0.5:8480,10.0.0.6:8480\n"
    "\n"
    "Clients speak gRPC (facet.v1.Inference, Models, Status; reflection and health are served).\n"
    "Health of facet.v1.Inference is SERVING while some group is ready. SIGTERM drains and exits "
    "0.\n";

TimeUs Microseconds(double seconds) { return static_cast<TimeUs>(seconds * 1e6); }

// "blue=2" and the like.
absl::Status AddTenantWeight(const std::string& text, TenantSharesOptions& tenants) {
  const size_t equals = text.rfind('=');
  double weight = 0;
  if (equals == std::string::npos || !absl::SimpleAtod(text.substr(equals + 1), &weight) ||
      !(weight >= 0.001 && weight <= 1000)) {
    return InvalidArgument(
        "--tenant_weight: '{}' is not name=weight, with a weight from 0.001 to 1000", text);
  }
  const std::string name = text.substr(0, equals);
  FACET_RETURN_IF_ERROR(Annotate(CheckTenant(name, RequestLimits()), "--tenant_weight"));
  tenants.weights[name] = weight;
  return absl::OkStatus();
}

absl::Status SetCoreOptions(RouterCoreOptions& core) {
  core.queue.requests_max = absl::GetFlag(FLAGS_queue_requests);
  core.queue.tokens_max = absl::GetFlag(FLAGS_queue_tokens);
  core.queue.bytes_max = absl::GetFlag(FLAGS_queue_bytes);
  core.group_wait_us = Microseconds(absl::GetFlag(FLAGS_group_wait_s));
  core.ttft_target_us = Microseconds(absl::GetFlag(FLAGS_ttft_target_ms) / 1e3);
  core.retries.per_thousand_requests = static_cast<int>(absl::GetFlag(FLAGS_retry_percent) * 10);
  core.seed = std::random_device()();
  for (const std::string& weight : absl::GetFlag(FLAGS_tenant_weight)) {
    FACET_RETURN_IF_ERROR(AddTenantWeight(weight, core.tenants));
  }
  if (core.ttft_target_us < 0) return InvalidArgument("--ttft_target_ms is below 0");
  if (core.retries.per_thousand_requests < 0) return InvalidArgument("--retry_percent is below 0");
  return absl::OkStatus();
}

absl::StatusOr<RouterOptions> OptionsFromFlags() {
  RouterOptions options;
  options.model_path = absl::GetFlag(FLAGS_model);
  options.model_name = absl::GetFlag(FLAGS_model_name);
  options.server.listen = absl::GetFlag(FLAGS_listen);
  options.server.address_file = absl::GetFlag(FLAGS_address_file);
  options.dispatcher.leaders.leaders = absl::GetFlag(FLAGS_leaders);
  FACET_RETURN_IF_ERROR(SetCoreOptions(options.dispatcher.core));
  options.inference.request_max_us = Microseconds(absl::GetFlag(FLAGS_max_request_s));
  options.inference.limits.prompt_bytes_max = absl::GetFlag(FLAGS_prompt_bytes_max);
  options.dispatcher.stall_max_us = Microseconds(absl::GetFlag(FLAGS_stall_s));
  if (options.model_path.empty()) return InvalidArgument("--model is needed");
  if (options.dispatcher.leaders.leaders.empty()) return InvalidArgument("--leaders is needed");
  if (!(absl::GetFlag(FLAGS_max_request_s) > 0 && absl::GetFlag(FLAGS_max_request_s) <= 1e9)) {
    return InvalidArgument("--max_request_s: {} is outside (0, 1e9]",
                           absl::GetFlag(FLAGS_max_request_s));
  }
  if (!(absl::GetFlag(FLAGS_stall_s) > 0 && absl::GetFlag(FLAGS_stall_s) <= 1e9)) {
    return InvalidArgument("--stall_s: {} is outside (0, 1e9]", absl::GetFlag(FLAGS_stall_s));
  }
  return options;
}

absl::Status Run(const ShutdownSignal& shutdown) {
  FACET_ASSIGN_OR_RETURN(const RouterOptions options, OptionsFromFlags());
  const auto registry = std::make_shared<prometheus::Registry>();
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<RouterServer> router,
                         RouterServer::Start(options, *registry));
  std::unique_ptr<MetricsListener> metrics;
  if (const int port = absl::GetFlag(FLAGS_metrics_port); port >= 0) {
    const MetricsListenerOptions listener{.address = absl::GetFlag(FLAGS_metrics_address),
                                          .age = [&router] { return router->Age(); }};
    FACET_ASSIGN_OR_RETURN(metrics, MetricsListener::Start(port, registry, listener));
    spdlog::info("metrics on port {}", metrics->port());
  }
  spdlog::info("serving {} to {}", router->model().name, router->address());
  shutdown.Wait();
  spdlog::info("draining");
  router->Drain(
      std::chrono::milliseconds(static_cast<int64_t>(absl::GetFlag(FLAGS_drain_s) * 1e3)));
  spdlog::info("drained");
  return absl::OkStatus();
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) {
  // Debian's Abseil looks for lock cycles at every lock, gRPC's included, under one global lock.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  facet::ParseFlagsOrExit(argc, argv, facet::kUsage, 0);
  const facet::ShutdownSignal shutdown;
  absl::Status status = facet::InitLog("facet-router", absl::GetFlag(FLAGS_log_level));
  if (status.ok()) status = facet::Run(shutdown);
  if (status.ok()) return 0;
  fmt::print(stderr, "facet-router: {}\n", facet::MessageOf(status));
  return 1;
}
