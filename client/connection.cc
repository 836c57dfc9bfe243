#include "client/connection.h"

#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "serving/grpc_channel.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

// How long a prompt may be is for the router to say.
constexpr int kMessageBytesMax = 1 << 30;
// A router that is back is used soon.
constexpr std::chrono::milliseconds kReconnectBackoffMax{250};

}  // namespace

Connection::Connection(ConnectionOptions connection_options)
    : options(std::move(connection_options)) {
  FACET_CHECK(!options.endpoints.empty());
  for (const std::string& endpoint : options.endpoints) {
    const std::shared_ptr<grpc::Channel> channel =
        MakeChannel(endpoint, {.keepalive_interval = options.keepalive_interval,
                               .keepalive_timeout = options.keepalive_timeout,
                               .reconnect_backoff_max = kReconnectBackoffMax,
                               .message_bytes_max = kMessageBytesMax});
    routers.push_back({.endpoint = endpoint,
                       .inference = v1::Inference::NewStub(channel),
                       .models = v1::Models::NewStub(channel),
                       .status = v1::Status::NewStub(channel)});
  }
}

std::optional<std::chrono::system_clock::time_point> Connection::Deadline() const {
  if (!options.timeout) return std::nullopt;
  return std::chrono::system_clock::now() + *options.timeout;
}

void Connection::Prepare(grpc::ClientContext& context,
                         std::optional<std::chrono::system_clock::time_point> deadline) const {
  if (!options.tenant.empty()) context.AddMetadata("facet-tenant", options.tenant);
  if (deadline) context.set_deadline(*deadline);
}

absl::Status Connection::Explain(const RouterStubs& router, const grpc::Status& status) {
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return FromGrpc(status);
  return Annotate(FromGrpc(status), fmt::format("router at {}", router.endpoint));
}

absl::Status Connection::Ask(
    const std::function<grpc::Status(const RouterStubs& router, grpc::ClientContext& context)>&
        call) const {
  absl::Status status;
  for (const RouterStubs& router : routers) {
    grpc::ClientContext context;
    Prepare(context, Deadline());
    status = Explain(router, call(router, context));
    if (!absl::IsUnavailable(status)) return status;
  }
  return status;
}

}  // namespace facet
