#ifndef FACET_ROUTER_SERVICE_UNARY_CALL_H_
#define FACET_ROUTER_SERVICE_UNARY_CALL_H_

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_unary_call.h>

#include <functional>
#include <memory>
#include <utility>

#include "router/service/call_acceptor.h"
#include "router/service/incoming_call.h"
#include "router/service/live_calls.h"
#include "router/service/serial_thread.h"

namespace facet {

// A call with one answer. The thread that has taken it owns it until it hands it on or finishes it.
template <typename In, typename Out>
class UnaryCall : public IncomingCall {
 public:
  // Asks a service's method for the next call: its Request...().
  using Method =
      std::function<void(grpc::ServerContext*, In*, grpc::ServerAsyncResponseWriter<Out>*,
                         grpc::CompletionQueue*, grpc::ServerCompletionQueue*, void*)>;
  // Leads to one Finish() of the call, on any thread.
  using Handler = std::function<void(std::shared_ptr<UnaryCall>)>;

  // It is one of `live`, which must outlive it, from Take() on.
  UnaryCall(Method method, Handler handler, LiveCalls& live)
      : method_(std::move(method)), handler_(std::move(handler)), live_(live) {}

  const grpc::ServerContext& context() const { return call_->context; }
  const In& request() const { return call_->request; }
  Out& response() { return call_->response; }

  // Sends the response if the status is OK. Nothing follows. Any thread, once.
  void Finish(const grpc::Status& status) {
    NoteWriting();
    call_->writer.Finish(call_->response, status, static_cast<QueueEvent*>(&finished_event_));
  }

  void Take() override {
    open_ = live_.Begin(*this);
    handler_(std::static_pointer_cast<UnaryCall>(self_));
  }

 protected:
  // False: the router takes no requests any more.
  bool open() const { return open_; }
  // On the core's thread: the client has gone away.
  virtual void OnCancelled() {}

  grpc::ServerContext& mutable_context() { return call_->context; }

 private:
  struct Call {
    grpc::ServerContext context;
    In request;
    Out response;
    grpc::ServerAsyncResponseWriter<Out> writer{&context};
  };

  void Request(grpc::ServerCompletionQueue& queue, void* tag) override {
    call_->context.AsyncNotifyWhenDone(static_cast<QueueEvent*>(&call_done_event_));
    method_(&call_->context, &call_->request, &call_->writer, &queue, &queue, tag);
  }

  void Cancel() override { call_->context.TryCancel(); }

  bool OnFinished(bool) {
    NoteWritten();
    finished_ = true;
    return EndIfOver();
  }

  bool OnCallDone(bool) {
    call_done_ = true;
    if (call_->context.IsCancelled()) OnCancelled();
    return EndIfOver();
  }

  // No turn of the core is needed: what happened has been posted to it.
  bool EndIfOver() {
    if (!finished_ || !call_done_) return false;
    const std::shared_ptr<IncomingCall> self = std::move(self_);
    call_.reset();  // the server may go once it is not live any more
    live_.End(*this);
    return false;
  }

  const Method method_;
  const Handler handler_;
  LiveCalls& live_;
  std::unique_ptr<Call> call_ = std::make_unique<Call>();  // null when it is over
  MemberEvent<&UnaryCall::OnFinished> finished_event_{this};
  MemberEvent<&UnaryCall::OnCallDone> call_done_event_{this};
  bool open_ = false;
  // The core's thread's:
  bool finished_ = false;
  bool call_done_ = false;
};

// A method of one answer whose calls `handler` gets.
template <typename In, typename Out>
AcceptedMethod AcceptUnary(typename UnaryCall<In, Out>::Method method,
                           typename UnaryCall<In, Out>::Handler handler, LiveCalls& live) {
  return {.make = [method = std::move(method), handler = std::move(handler), &live] {
    return std::make_shared<UnaryCall<In, Out>>(method, handler, live);
  }};
}

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_UNARY_CALL_H_
