#ifndef FACET_CLIENT_CONNECTION_H_
#define FACET_CLIENT_CONNECTION_H_

#include <grpcpp/client_context.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "facet/v1/inference.grpc.pb.h"

namespace facet {

struct ConnectionOptions {
  std::string endpoint = "localhost:8470";  // host:port or unix:/path
  std::string tenant;                       // empty: the router's default
  // For a whole call; the router stops work that is past it.
  std::optional<std::chrono::milliseconds> timeout;
};

// The router as one client sees it. The stubs are thread-safe.
struct Connection {
  explicit Connection(const ConnectionOptions& options);

  // Sets the tenant and the deadline of a call.
  void Prepare(grpc::ClientContext& context) const;
  // Says which router could not be reached, where that was the trouble.
  absl::Status Explain(const grpc::Status& status) const;

  const ConnectionOptions options;
  std::unique_ptr<v1::Inference::StubInterface> inference;
  std::unique_ptr<v1::Models::StubInterface> models;
  std::unique_ptr<v1::Status::StubInterface> status;
};

}  // namespace facet

#endif  // FACET_CLIENT_CONNECTION_H_
