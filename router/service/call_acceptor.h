#ifndef FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
#define FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_

#include <grpcpp/completion_queue.h>

#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "router/service/message_stream.h"

namespace facet {

struct CallAcceptorOptions {
  int threads = 0;        // 0: one per two processors, 2 to 16
  int calls_ahead = 128;  // that gRPC may hand over before the first of them has been taken
};

// Takes the streaming calls that come, on threads of its own. Life: made before the server is
// built, Start() once it runs, Close() before it is shut down, and destroyed after that.
class CallAcceptor {
 public:
  // Every call that comes is handed to `take`, on one of the threads, as a stream from `make`,
  // whose operations end on `core`. All references must outlive this.
  CallAcceptor(const CallAcceptorOptions& options, InferenceMethods& methods,
               grpc::CompletionQueue& core, std::unique_ptr<grpc::ServerCompletionQueue> calls,
               std::function<std::shared_ptr<MessageStream>()> make,
               std::function<void(std::shared_ptr<MessageStream>)> take);
  // Returns when what has come has been taken. REQUIRES: no server was built, or it is shut down.
  ~CallAcceptor();
  CallAcceptor(const CallAcceptor&) = delete;
  CallAcceptor& operator=(const CallAcceptor&) = delete;

  void Start();
  // Asks for no further calls.
  void Close();

 private:
  void RequestOne();
  void Run();

  const CallAcceptorOptions options_;
  InferenceMethods& methods_;
  grpc::CompletionQueue& core_;
  const std::unique_ptr<grpc::ServerCompletionQueue> calls_;
  const std::function<std::shared_ptr<MessageStream>()> make_;
  const std::function<void(std::shared_ptr<MessageStream>)> take_;
  absl::Mutex mutex_;  // held while a call is asked for: none after Close()
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  std::vector<std::thread> threads_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_CALL_ACCEPTOR_H_
