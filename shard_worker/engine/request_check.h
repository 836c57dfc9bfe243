#ifndef FACET_SHARD_WORKER_ENGINE_REQUEST_CHECK_H_
#define FACET_SHARD_WORKER_ENGINE_REQUEST_CHECK_H_

#include "absl/status/status.h"
#include "shard_worker/engine/engine.h"

namespace facet {

// InvalidArgument, naming the field and its bound, for a request that an engine with these
// options and this context (prompt + output, at most) must refuse.
absl::Status CheckRequest(const EngineRequest& request, const EngineOptions& options,
                          int context_tokens);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_REQUEST_CHECK_H_
