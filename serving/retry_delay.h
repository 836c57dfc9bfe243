#ifndef FACET_SERVING_RETRY_DELAY_H_
#define FACET_SERVING_RETRY_DELAY_H_

// How a refused call is told when to come back: google.rpc.RetryInfo among the status's details,
// which client libraries in any language read, and `grpc-retry-pushback-ms` in the trailing
// metadata, which gRPC's own retry policy obeys.

#include <grpcpp/client_context.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <optional>

namespace facet {

// `status` with the delay in both places. REQUIRES: not OK; the call's metadata has not been sent.
grpc::Status WithRetryDelay(const grpc::Status& status, std::chrono::milliseconds delay,
                            grpc::ServerContextBase& context);

// The delay that came with `status`, which ended the call of `context`.
std::optional<std::chrono::milliseconds> RetryDelayOf(const grpc::Status& status,
                                                      const grpc::ClientContext& context);

}  // namespace facet

#endif  // FACET_SERVING_RETRY_DELAY_H_
