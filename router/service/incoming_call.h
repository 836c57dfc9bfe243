#ifndef FACET_ROUTER_SERVICE_INCOMING_CALL_H_
#define FACET_ROUTER_SERVICE_INCOMING_CALL_H_

#include <grpcpp/completion_queue.h>

#include <atomic>
#include <memory>
#include <utility>

#include "router/service/serial_thread.h"

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

  // Cancels the call if something has been on its way to the client since before `before`: the
  // client does not read. True: just now. On the core's thread, while the call is live.
  bool GiveUpIfStalled(TimeUs before) {
    if (given_up_ || writing_since_ >= before) return false;
    given_up_ = true;
    Cancel();
    return true;
  }

 protected:
  virtual void Request(grpc::ServerCompletionQueue& queue, void* tag) = 0;
  // Ends what is under way soon.
  virtual void Cancel() = 0;

  // Around each operation that sends something: on the thread that starts it; when it has ended.
  void NoteWriting() { writing_since_ = MonotonicNow(); }
  void NoteWritten() { writing_since_ = kNever; }
  bool writing() const { return writing_since_ != kNever; }

  std::shared_ptr<IncomingCall> self_;  // until it is over

 private:
  std::atomic<TimeUs> writing_since_ = kNever;  // kNever: nothing is on its way
  bool given_up_ = false;                       // the core's thread's
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_INCOMING_CALL_H_
