#ifndef FACET_SHARD_WORKER_SERVICE_ROUTER_STREAM_H_
#define FACET_SHARD_WORKER_SERVICE_ROUTER_STREAM_H_

#include <cstdint>

#include "absl/status/status.h"
#include "facet/v1/shard.pb.h"

namespace facet {

// One router's session as the engine loop sees it. Any thread may call; nothing blocks.
// Lifetime is shared between the RPC and the loop.
class RouterStream {
 public:
  virtual ~RouterStream() = default;
  // Queues news. A stream whose router does not read ends itself; then this does nothing.
  virtual void Send(v1::LeaderMessage message) = 0;
  // A message that was posted, of `bytes`, has been taken in: more may be read.
  virtual void Taken(int64_t bytes) = 0;
  // Ends the stream once what was queued is written.
  virtual void End(const absl::Status& status) = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_ROUTER_STREAM_H_
