#ifndef FACET_ROUTER_SERVICE_LEADER_STREAM_H_
#define FACET_ROUTER_SERVICE_LEADER_STREAM_H_

#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/support/async_stream.h>

#include <functional>
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "facet/v1/shard.grpc.pb.h"
#include "router/service/serial_thread.h"

namespace facet {

// One bidirectional call to a leader: at most one write under way, later messages merge into the
// next; one message is read at a time, so that a leader cannot run ahead of us.
// Everything runs on the thread of the queue given. Lives until gRPC is done with it, whoever else
// lets go.
class LeaderStream {
 public:
  // After `on_message` nothing is read until ReadNext(), which ends the use of `message`. `on_end`
  // comes last.
  struct Events {
    std::function<void(v1::LeaderMessage& message)> on_message;
    std::function<void(const absl::Status& status)> on_end;
  };
  static std::shared_ptr<LeaderStream> Start(v1::Leader::Stub& stub, grpc::CompletionQueue& queue,
                                             Events events);

  void Send(v1::RouterMessage message);
  // Once after each message.
  void ReadNext() { call_->Read(&incoming_, static_cast<QueueEvent*>(&read_)); }
  void Cancel() { context_.TryCancel(); }

 private:
  explicit LeaderStream(Events events) : events_(std::move(events)) {}

  bool OnStarted(bool ok);
  bool OnRead(bool ok);
  bool OnWritten(bool ok);
  bool OnFinished(bool ok);
  void Finish();
  // True, after `on_end`, once nothing of the call is under way.
  bool EndIfOver();
  // Starts the next write if none is under way.
  void Pump();

  Events events_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientAsyncReaderWriter<v1::RouterMessage, v1::LeaderMessage>> call_;
  MemberEvent<&LeaderStream::OnStarted> started_event_{this};
  MemberEvent<&LeaderStream::OnRead> read_{this};
  MemberEvent<&LeaderStream::OnWritten> written_{this};
  MemberEvent<&LeaderStream::OnFinished> finished_event_{this};
  v1::LeaderMessage incoming_;
  v1::RouterMessage pending_;
  grpc::Status status_;
  bool open_ = false;  // started, and the leader's side has not ended
  bool writing_ = false;
  bool finished_ = false;
  std::shared_ptr<LeaderStream> self_;  // until `on_end`
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LEADER_STREAM_H_
