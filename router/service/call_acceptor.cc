#include "router/service/call_acceptor.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace facet {

CallAcceptor::CallAcceptor(const CallAcceptorOptions& options, std::vector<AcceptedMethod> methods,
                           grpc::CompletionQueue& core,
                           std::unique_ptr<grpc::ServerCompletionQueue> calls)
    : options_(options), methods_(std::move(methods)), core_(core), calls_(std::move(calls)) {}

CallAcceptor::~CallAcceptor() {
  calls_->Shutdown();
  if (threads_.empty()) Run();
  for (std::thread& thread : threads_) thread.join();
}

void CallAcceptor::Start() {
  for (const AcceptedMethod& method : methods_) {
    const int ahead = method.busy ? options_.calls_ahead : options_.calls_ahead_idle;
    for (int i = 0; i < ahead; ++i) AskForOne(method);
  }
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  const int threads = options_.threads > 0 ? options_.threads : std::clamp(processors / 2, 2, 16);
  for (int i = 0; i < threads; ++i) {
    threads_.emplace_back([this] {
      pthread_setname_np(pthread_self(), "facet-accept");
      Run();
    });
  }
}

void CallAcceptor::Close() {
  absl::MutexLock lock(&mutex_);
  open_ = false;
}

void CallAcceptor::AskForOne(const AcceptedMethod& method) {
  auto asked = std::make_unique<Asked>(Asked{method, method.make()});
  absl::MutexLock lock(&mutex_);
  if (!open_) return;
  std::shared_ptr<IncomingCall> call = asked->call;
  IncomingCall::Ask(std::move(call), core_, *calls_, asked.release());
}

void CallAcceptor::Run() {
  void* tag = nullptr;
  bool ok = false;
  while (calls_->Next(&tag, &ok)) {
    const std::unique_ptr<Asked> asked(static_cast<Asked*>(tag));
    if (!ok) {
      asked->call->Forget();
      continue;
    }
    AskForOne(asked->method);
    asked->call->Take();
  }
}

}  // namespace facet
