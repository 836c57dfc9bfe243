#ifndef FACET_SERVING_GRPC_STATUS_H_
#define FACET_SERVING_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include "absl/status/status.h"

namespace facet {

// The two have the same codes. Bytes of a message that are not UTF-8 become '?', since gRPC
// carries text.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

}  // namespace facet

#endif  // FACET_SERVING_GRPC_STATUS_H_
