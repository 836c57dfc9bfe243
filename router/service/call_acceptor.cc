#include "router/service/call_acceptor.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace facet {

CallAcceptor::CallAcceptor(const CallAcceptorOptions& options, std::vector<AcceptedMethod> methods,
                           grpc::ServerCompletionQueue& queue)
    : options_(options), methods_(std::move(methods)), queue_(queue) {}

CallAcceptor::~CallAcceptor() {
  {
    absl::MutexLock lock(&mutex_);
    // The server, shut down, says of each that none will come.
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return asked_ == 0; };
    mutex_.Await(absl::Condition(&none));
    over_ = true;
  }
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
  auto asked = std::make_unique<Asked>(this, method);
  absl::MutexLock lock(&mutex_);
  if (!open_) return;
  ++asked_;
  std::shared_ptr<IncomingCall> call = asked->call;
  IncomingCall::Ask(std::move(call), queue_, static_cast<QueueEvent*>(asked.release()));
}

bool CallAcceptor::Asked::OnEvent(bool ok) {
  acceptor->Hear(std::unique_ptr<Asked>(this), ok);
  return false;
}

void CallAcceptor::Hear(std::unique_ptr<Asked> asked, bool ok) {
  if (!ok) {
    asked->call->Forget();
    asked.reset();  // before the last one is counted: then the server may go
  }
  absl::MutexLock lock(&mutex_);
  --asked_;
  if (ok) come_.push_back(std::move(asked));
}

std::unique_ptr<CallAcceptor::Asked> CallAcceptor::Next() {
  const auto wanted = [this]()
                          ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return over_ || !come_.empty(); };
  absl::MutexLock lock(&mutex_);
  mutex_.Await(absl::Condition(&wanted));
  if (come_.empty()) return nullptr;
  std::unique_ptr<Asked> first = std::move(come_.front());
  come_.pop_front();
  return first;
}

void CallAcceptor::Run() {
  while (const std::unique_ptr<Asked> asked = Next()) {
    AskForOne(asked->method);
    asked->call->Take();
  }
}

}  // namespace facet
