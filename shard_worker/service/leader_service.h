#ifndef FACET_SHARD_WORKER_SERVICE_LEADER_SERVICE_H_
#define FACET_SHARD_WORKER_SERVICE_LEADER_SERVICE_H_

#include <cstdint>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.grpc.pb.h"
#include "shard_worker/service/engine_loop.h"

namespace facet {

struct SessionOptions {
  // Posted to the engine loop and not yet taken in, per session: beyond these it is not read.
  int posted_messages_max = 64;
  int64_t posted_bytes_max = int64_t{32} << 20;
  // Deltas that a router has not read. They are merged per sequence; beyond this the session is
  // cancelled.
  int64_t unread_bytes_max = int64_t{8} << 20;
};

// facet.v1.Leader: carries messages between routers and the engine loop. Decides nothing.
class LeaderService : public v1::Leader::CallbackService {
 public:
  explicit LeaderService(const SessionOptions& options) : options_(options) {}

  // From now on sessions are taken. Those that were taken keep their loop.
  void Attach(std::shared_ptr<EngineLoop> loop);
  // Later sessions are refused with UNAVAILABLE, as before Attach().
  void Detach();

 private:
  grpc::ServerBidiReactor<v1::RouterMessage, v1::LeaderMessage>* Session(
      grpc::CallbackServerContext* context) override;

  const SessionOptions options_;
  absl::Mutex mutex_;
  std::shared_ptr<EngineLoop> loop_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_LEADER_SERVICE_H_
