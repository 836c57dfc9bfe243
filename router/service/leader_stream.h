#ifndef FACET_ROUTER_SERVICE_LEADER_STREAM_H_
#define FACET_ROUTER_SERVICE_LEADER_STREAM_H_

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <functional>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.grpc.pb.h"

namespace facet {

// One bidirectional call to a leader: at most one write under way, later messages merge into the
// next; one message is read at a time, so that a leader cannot run ahead of us.
// Lives until gRPC is done with it, whoever else lets go.
class LeaderStream : public grpc::ClientBidiReactor<v1::RouterMessage, v1::LeaderMessage>,
                     public std::enable_shared_from_this<LeaderStream> {
 public:
  // Called on gRPC's threads. After `on_message` nothing is read until ReadNext(). `on_end` comes
  // last and takes over gRPC's own share in `stream`: the last one must go on another thread,
  // because with it may go the channel, which waits for gRPC's threads.
  struct Events {
    std::function<void(v1::LeaderMessage message)> on_message;
    std::function<void(std::shared_ptr<LeaderStream> stream, absl::Status status)> on_end;
  };
  static std::shared_ptr<LeaderStream> Start(v1::Leader::Stub& stub, Events events);

  // One thread calls these. ReadNext(): once after each message.
  void Send(v1::RouterMessage message);
  void ReadNext() { StartRead(&incoming_); }
  void Cancel() { context_.TryCancel(); }

 private:
  explicit LeaderStream(Events events) : events_(std::move(events)) {}

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;
  // Starts the next write if none is under way.
  void Pump();

  Events events_;
  grpc::ClientContext context_;
  v1::LeaderMessage incoming_;
  v1::RouterMessage outgoing_;  // under way
  absl::Mutex mutex_;
  v1::RouterMessage pending_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // the leader's side has ended
  std::shared_ptr<LeaderStream> self_;           // until OnDone
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LEADER_STREAM_H_
