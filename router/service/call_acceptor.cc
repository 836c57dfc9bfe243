#include "router/service/call_acceptor.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace facet {

CallAcceptor::CallAcceptor(const CallAcceptorOptions& options, InferenceMethods& methods,
                           grpc::CompletionQueue& core,
                           std::unique_ptr<grpc::ServerCompletionQueue> calls,
                           std::function<std::shared_ptr<MessageStream>()> make,
                           std::function<void(std::shared_ptr<MessageStream>)> take)
    : options_(options),
      methods_(methods),
      core_(core),
      calls_(std::move(calls)),
      make_(std::move(make)),
      take_(std::move(take)) {}

CallAcceptor::~CallAcceptor() {
  calls_->Shutdown();
  if (threads_.empty()) Run();
  for (std::thread& thread : threads_) thread.join();
}

void CallAcceptor::Start() {
  for (int i = 0; i < options_.calls_ahead; ++i) RequestOne();
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

void CallAcceptor::RequestOne() {
  std::shared_ptr<MessageStream> stream = make_();
  absl::MutexLock lock(&mutex_);
  if (open_) MessageStream::Request(std::move(stream), methods_, core_, *calls_);
}

void CallAcceptor::Run() {
  void* tag = nullptr;
  bool ok = false;
  while (calls_->Next(&tag, &ok)) {
    std::shared_ptr<MessageStream> stream = MessageStream::Arrived(tag, ok);
    if (stream == nullptr) continue;
    RequestOne();
    take_(std::move(stream));
  }
}

}  // namespace facet
