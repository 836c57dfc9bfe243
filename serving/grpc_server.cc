#include "serving/grpc_server.h"

#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <spdlog/spdlog.h>

#include "base/status.h"
#include "serving/address.h"

namespace facet {
namespace {

constexpr int kClientPingIntervalMinMs = 250;

void Configure(grpc::ServerBuilder& builder, const GrpcServerOptions& options) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  builder.SetMaxReceiveMessageSize(options.message_bytes_max);
  builder.SetMaxSendMessageSize(options.message_bytes_max);
  if (options.stream_window_bytes > 0) {
    builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, options.stream_window_bytes);
  }
  // Linux would let two servers share a port and split the connections between them.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                             static_cast<int>(options.keepalive_interval.count()));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                             static_cast<int>(options.keepalive_timeout.count()));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             kClientPingIntervalMinMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
}

// gRPC shuts down whole when its last object goes, and may then wait 10 s for a poller of its own:
// too long for a process that ends. Never released, so it never does.
void KeepGrpcUp() {
  [[maybe_unused]] static const bool up = [] {
    grpc_init();
    return true;
  }();
}

}  // namespace

absl::StatusOr<RunningServer> StartGrpcServer(grpc::ServerBuilder& builder,
                                              const GrpcServerOptions& options) {
  KeepGrpcUp();
  // gRPC would unlink a unix socket that somebody else still listens on.
  FACET_RETURN_IF_ERROR(ProbeListen(options.listen));
  Configure(builder, options);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  RunningServer running;
  running.server = builder.BuildAndStart();
  if (running.server == nullptr) {
    FACET_RETURN_IF_ERROR(ProbeListen(options.listen));
    return FailedPrecondition("{}: cannot listen", options.listen);
  }
  if (auto* health = running.server->GetHealthCheckService()) health->SetServingStatus(false);
  running.address = IsUnixAddress(options.listen) ? options.listen : WithPort(options.listen, port);
  spdlog::info("listening on {}", running.address);
  if (!options.address_file.empty()) {
    FACET_RETURN_IF_ERROR(WriteAddressFile(options.address_file, running.address));
  }
  return running;
}

void ShutDown(grpc::Server& server, std::chrono::milliseconds grace) {
  if (auto* health = server.GetHealthCheckService()) health->SetServingStatus(false);
  server.Shutdown(std::chrono::system_clock::now() + grace);
  server.Wait();
}

}  // namespace facet
