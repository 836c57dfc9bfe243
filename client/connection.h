#ifndef FACET_CLIENT_CONNECTION_H_
#define FACET_CLIENT_CONNECTION_H_

#include <grpcpp/client_context.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "facet/v1/inference.grpc.pb.h"

namespace facet {

// How a stream that broke off, or was refused for now, is continued.
struct RetryOptions {
  // How long to look for a router that goes on, since the last message came. 0: not at all.
  std::chrono::milliseconds limit{30'000};
  // A router that failed is left alone for so long, twice as long after each further failure.
  std::chrono::milliseconds backoff_min{50};
  std::chrono::milliseconds backoff_max{1'000};
};

struct ConnectionOptions {
  // Routers that face the same groups: host:port or unix:/path. The first one is asked first.
  std::vector<std::string> endpoints = {"localhost:8470"};
  std::string tenant;  // empty: the router's default
  // For a whole call, its retries included; the router stops work that is past it.
  std::optional<std::chrono::milliseconds> timeout;
  RetryOptions retry;
  // A router that does not answer pings while a call runs is given up after interval + timeout.
  std::chrono::milliseconds keepalive_interval{1'000};
  std::chrono::milliseconds keepalive_timeout{1'500};
};

// One router as a client sees it. The stubs are thread-safe.
struct RouterStubs {
  std::string endpoint;
  std::unique_ptr<v1::Inference::StubInterface> inference;
  std::unique_ptr<v1::Models::StubInterface> models;
  std::unique_ptr<v1::Status::StubInterface> status;
};

// The routers of one cluster.
struct Connection {
  // REQUIRES: at least one endpoint.
  explicit Connection(ConnectionOptions connection_options);

  // When a call that begins now has to be over.
  std::optional<std::chrono::system_clock::time_point> Deadline() const;
  // Sets the tenant and the deadline of a call.
  void Prepare(grpc::ClientContext& context,
               std::optional<std::chrono::system_clock::time_point> deadline) const;
  // Says which router could not be reached, where that was the trouble.
  static absl::Status Explain(const RouterStubs& router, const grpc::Status& status);
  // Makes a short call to the first router that can be reached.
  absl::Status Ask(const std::function<grpc::Status(const RouterStubs& router,
                                                    grpc::ClientContext& context)>& call) const;

  const ConnectionOptions options;
  std::vector<RouterStubs> routers;  // by endpoint
};

}  // namespace facet

#endif  // FACET_CLIENT_CONNECTION_H_
