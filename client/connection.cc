#include "client/connection.h"

#include "base/status.h"
#include "serving/grpc_channel.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

// How long a prompt may be is for the router to say.
constexpr int kMessageBytesMax = 1 << 30;

}  // namespace

Connection::Connection(const ConnectionOptions& connection_options) : options(connection_options) {
  const std::shared_ptr<grpc::Channel> channel =
      MakeChannel(options.endpoint, {.message_bytes_max = kMessageBytesMax});
  inference = v1::Inference::NewStub(channel);
  models = v1::Models::NewStub(channel);
  status = v1::Status::NewStub(channel);
}

void Connection::Prepare(grpc::ClientContext& context) const {
  if (!options.tenant.empty()) context.AddMetadata("facet-tenant", options.tenant);
  if (options.timeout) {
    context.set_deadline(std::chrono::system_clock::now() + *options.timeout);
  }
}

absl::Status Connection::Explain(const grpc::Status& status) const {
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return FromGrpc(status);
  return Annotate(FromGrpc(status), fmt::format("router at {}", options.endpoint));
}

}  // namespace facet
