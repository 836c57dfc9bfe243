#ifndef FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_
#define FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_

#include <grpcpp/completion_queue.h>
#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "facet/v1/inference.grpc.pb.h"
#include "router/service/incoming_call.h"
#include "router/service/live_calls.h"
#include "router/service/response_sink.h"
#include "router/service/serial_thread.h"

namespace facet {

struct MessageStreamOptions {
  // What may wait for a client that reads slowly, beside what gRPC itself has under way, before
  // its request is paused. Passed by what is on its way from the core then.
  int64_t pending_bytes_max = 64 << 10;
};

// A streaming call and its answer: one write under way, later parts merge into the next message.
// Its operations end on the core's thread, which alone touches it, but for what is said here.
class MessageStream : public IncomingCall, public ResponseSink {
 public:
  // Gets the stream when the call has come, on a thread of the acceptor.
  using Handler = std::function<void(const std::shared_ptr<MessageStream>&)>;

  // For a call to Generate, one of `live` from Take() on. Both must outlive it.
  MessageStream(const MessageStreamOptions& options, v1::Inference::AsyncService& service,
                Handler handler, LiveCalls& live);

  // For the thread that has taken the call, until it gives the stream to the core or finishes it.
  // False: the router takes no requests any more.
  bool open() const { return open_; }
  const grpc::ServerContext& context() const { return call_->context; }
  const v1::GenerateRequest& request() const { return call_->request; }

  void Take() override;

  Room Write(v1::GenerateResponse part) override;
  void Flush() override { Pump(); }
  void Finish(const absl::Status& status) override;

 private:
  struct Call {
    grpc::ServerContext context;
    v1::GenerateRequest request;
    grpc::ServerAsyncWriter<v1::GenerateResponse> writer{&context};
  };

  void Request(grpc::ServerCompletionQueue& queue, void* tag) override;
  void Cancel() override { call_->context.TryCancel(); }
  bool OnWritten(bool ok);
  bool OnFinished(bool ok);
  bool OnCallDone(bool ok);
  // What happened so far needs no turn of the core, or has been posted to it.
  static constexpr bool kNoTurn = false;
  // Lets go of the call once its last two events have come.
  void EndIfOver();
  // Starts what is next if nothing is under way.
  void Pump();
  void WritePending();
  void Merge(v1::GenerateResponse part);

  const MessageStreamOptions options_;
  v1::Inference::AsyncService& service_;
  const Handler handler_;
  LiveCalls& live_;
  std::unique_ptr<Call> call_;  // null when it is over
  MemberEvent<&MessageStream::OnWritten> written_{this};
  MemberEvent<&MessageStream::OnFinished> finished_event_{this};
  MemberEvent<&MessageStream::OnCallDone> call_done_event_{this};
  v1::GenerateResponse pending_;
  int64_t pending_bytes_ = 0;
  // Where in `pending_` the last delta of each choice is.
  absl::flat_hash_map<int64_t, int> last_delta_;
  bool full_ = false;    // said so, and not drained yet
  bool broken_ = false;  // a write has failed
  std::optional<grpc::Status> final_;
  bool finish_started_ = false;
  bool open_ = false;
  bool finished_ = false;   // the last operation has ended
  bool call_done_ = false;  // gRPC has no more to say of the call
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_
