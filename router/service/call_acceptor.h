#ifndef FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
#define FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_

#include <grpcpp/completion_queue.h>

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/service/incoming_call.h"
#include "router/service/serial_thread.h"

namespace facet {

struct CallAcceptorOptions {
  int threads = 0;           // 0: one per two processors, 2 to 16
  int calls_ahead = 128;     // of each busy method: gRPC may hand over so many before one is taken
  int calls_ahead_idle = 8;  // of each of the others
};

// A method whose calls are accepted.
struct AcceptedMethod {
  std::function<std::shared_ptr<IncomingCall>()> make;  // the next call, not asked for yet
  bool busy = false;
};

// Takes the calls that come, of all methods, on threads of its own. That one has come is heard on
// the core's thread, which hands it over: if these threads waited for gRPC themselves, it would
// have them take turns at the sockets with the core's, and wake one of them at every message.
// Life: made before the server is built, Start() once it runs, Close() before it is shut down, and
// destroyed after that.
class CallAcceptor {
 public:
  // Calls arrive, and their operations end, on the server's `queue`, which somebody looks after
  // until this is gone.
  CallAcceptor(const CallAcceptorOptions& options, std::vector<AcceptedMethod> methods,
               grpc::ServerCompletionQueue& queue);
  // Returns when what has come has been taken. REQUIRES: no server was built, or it is shut down.
  ~CallAcceptor();
  CallAcceptor(const CallAcceptor&) = delete;
  CallAcceptor& operator=(const CallAcceptor&) = delete;

  void Start();
  // Asks for no further calls.
  void Close();

 private:
  // A call that was asked for: its event is that it has come, or that none will any more. Owns
  // itself from AskForOne() until then, and is then in `come_`, if it has come.
  struct Asked final : QueueEvent {
    Asked(CallAcceptor* acceptor, const AcceptedMethod& method)
        : acceptor(acceptor), method(method), call(method.make()) {}
    bool OnEvent(bool ok) override;

    CallAcceptor* const acceptor;
    const AcceptedMethod& method;
    std::shared_ptr<IncomingCall> call;
  };

  void AskForOne(const AcceptedMethod& method) ABSL_LOCKS_EXCLUDED(mutex_);
  // On the core's thread.
  void Hear(std::unique_ptr<Asked> asked, bool ok) ABSL_LOCKS_EXCLUDED(mutex_);
  // A thread of ours, until nothing can come any more.
  void Run() ABSL_LOCKS_EXCLUDED(mutex_);
  // Waits for a call that has come; null: none will.
  std::unique_ptr<Asked> Next() ABSL_LOCKS_EXCLUDED(mutex_);

  const CallAcceptorOptions options_;
  const std::vector<AcceptedMethod> methods_;
  grpc::ServerCompletionQueue& queue_;
  absl::Mutex mutex_;  // held while a call is asked for: none after Close()
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;                        // the threads may end
  int asked_ ABSL_GUARDED_BY(mutex_) = 0;                            // and not heard of
  std::deque<std::unique_ptr<Asked>> come_ ABSL_GUARDED_BY(mutex_);  // as many as were asked for
  std::vector<std::thread> threads_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
