#ifndef FACET_ROUTER_SERVICE_INCOMING_CALL_H_
#define FACET_ROUTER_SERVICE_INCOMING_CALL_H_

#include <grpcpp/completion_queue.h>

#include <memory>
#include <utility>

namespace facet {

// A call that gRPC is asked for before it comes. It is one call's whole life: asked for, taken by a
// thread of the CallAcceptor, answered, and over when gRPC has no more to say of it. Its
// operations end on the core's thread. Lives until then, whoever else lets go.
class IncomingCall {
 public:
  virtual ~IncomingCall() = default;

  // Asks for the call. `tag` comes on `queue` when it has arrived, or when none will any more; what
  // is done with it then ends there, too. Any thread.
  static void Ask(std::shared_ptr<IncomingCall> call, grpc::ServerCompletionQueue& queue,
                  void* tag) {
    IncomingCall& self = *call;
    self.self_ = std::move(call);
    // From here on the call may arrive, and what runs then may let go of it.
    self.Request(queue, tag);
  }

  // Once the tag has come: starts the work and returns. On a thread of the acceptor.
  virtual void Take() = 0;
  // The tag has come without a call.
  void Forget() { self_.reset(); }

 protected:
  virtual void Request(grpc::ServerCompletionQueue& queue, void* tag) = 0;

  std::shared_ptr<IncomingCall> self_;  // until it is over
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_INCOMING_CALL_H_
