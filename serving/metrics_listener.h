#ifndef FACET_SERVING_METRICS_LISTENER_H_
#define FACET_SERVING_METRICS_LISTENER_H_

#include <prometheus/registry.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

struct MetricsListenerOptions {
  std::string address = "0.0.0.0";  // a literal IPv4 or IPv6 address
  int connections_max = 32;         // further ones wait in the kernel's queue
  int header_bytes_max = 8192;
  // For a whole request to arrive and for an answer to be taken; also between two requests.
  std::chrono::milliseconds idle_timeout{10000};
  // How long ago the thread that matters last moved (Pulse::Age), asked on the listener's thread;
  // empty: nobody is watched. Beyond `stuck_after` /healthz answers 503.
  std::function<std::chrono::milliseconds()> age;
  std::chrono::milliseconds stuck_after{2000};
};

// Serves a process's metrics over HTTP/1.1 on one thread of its own:
//   GET /metrics  the registry in Prometheus' text format
//   GET /healthz  200 while the process moves, else 503: kill it (readiness is gRPC health's
//                 business)
// HEAD works too; other paths are 404, other methods 405.
class MetricsListener {
 public:
  // Port 0 takes any free port. FailedPrecondition names the address if it cannot be had.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(
      int port, std::shared_ptr<prometheus::Registry> registry,
      const MetricsListenerOptions& options = {});
  // Closes every connection and joins the thread.
  ~MetricsListener();

  int port() const;

 private:
  class Impl;
  explicit MetricsListener(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace facet

#endif  // FACET_SERVING_METRICS_LISTENER_H_
