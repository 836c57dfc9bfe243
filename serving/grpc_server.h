#ifndef FACET_SERVING_GRPC_SERVER_H_
#define FACET_SERVING_GRPC_SERVER_H_

#include <grpcpp/server.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace facet {

struct GrpcServerOptions {
  std::string listen = "0.0.0.0:0";  // host:port (0: any free port) or unix:/path
  std::string address_file;          // where the bound address is written; empty: nowhere
  int message_bytes_max = 16 << 20;
  // What a peer may send of one stream before we read it; 0: gRPC measures the link and decides.
  int stream_window_bytes = 0;
  // A client that does not answer pings is gone after interval + timeout.
  std::chrono::milliseconds keepalive_interval{10000};
  std::chrono::milliseconds keepalive_timeout{5000};
};

struct RunningServer {
  std::unique_ptr<grpc::Server> server;
  std::string address;  // as clients on this host write it, with the chosen port
};

// Starts the server that `builder` describes (its services registered by the caller), with
// reflection and gRPC's own health service, on a port of its own: a port in use is an error, never
// shared. Logs the address. Health is NOT_SERVING until the caller says otherwise through
// server->GetHealthCheckService()->SetServingStatus(). A caller that registers another health
// service tells the builder to leave gRPC's out (HealthCheckServiceServerBuilderOption).
absl::StatusOr<RunningServer> StartGrpcServer(grpc::ServerBuilder& builder,
                                              const GrpcServerOptions& options);

// Refuses new calls, gives running ones `grace`, cancels the rest, and waits for all of them.
void ShutDown(grpc::Server& server, std::chrono::milliseconds grace);

}  // namespace facet

#endif  // FACET_SERVING_GRPC_SERVER_H_
