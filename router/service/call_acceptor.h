#ifndef FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
#define FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_

#include <grpcpp/completion_queue.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/service/incoming_call.h"

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

// Takes the calls that come, of all methods, on threads of its own. Life: made before the server is
// built, Start() once it runs, Close() before it is shut down, and destroyed after that.
class CallAcceptor {
 public:
  // The calls' operations end on `core`, which must outlive this.
  CallAcceptor(const CallAcceptorOptions& options, std::vector<AcceptedMethod> methods,
               grpc::CompletionQueue& core, std::unique_ptr<grpc::ServerCompletionQueue> calls);
  // Returns when what has come has been taken. REQUIRES: no server was built, or it is shut down.
  ~CallAcceptor();
  CallAcceptor(const CallAcceptor&) = delete;
  CallAcceptor& operator=(const CallAcceptor&) = delete;

  void Start();
  // Asks for no further calls.
  void Close();

 private:
  // What a tag stands for: a call that was asked for.
  struct Asked {
    const AcceptedMethod& method;
    std::shared_ptr<IncomingCall> call;
  };

  void AskForOne(const AcceptedMethod& method);
  void Run();

  const CallAcceptorOptions options_;
  const std::vector<AcceptedMethod> methods_;
  grpc::CompletionQueue& core_;
  const std::unique_ptr<grpc::ServerCompletionQueue> calls_;
  absl::Mutex mutex_;  // held while a call is asked for: none after Close()
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  std::vector<std::thread> threads_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
