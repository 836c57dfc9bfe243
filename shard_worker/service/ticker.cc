#include "shard_worker/service/ticker.h"

#include <pthread.h>

#include <utility>

#include "absl/time/time.h"

namespace facet {

Ticker::Ticker(std::string thread_name, TimeUs period, std::function<void()> tick)
    : period_(period),
      tick_(std::move(tick)),
      thread_([this, name = std::move(thread_name)] { Run(name); }) {}

Ticker::~Ticker() {
  {
    const absl::MutexLock lock(&mutex_);
    stop_ = true;
  }
  thread_.join();
}

void Ticker::Run(const std::string& thread_name) {
  pthread_setname_np(pthread_self(), thread_name.c_str());
  while (true) {
    tick_();
    const absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(absl::Condition(&stop_), absl::Microseconds(period_));
    if (stop_) return;
  }
}

}  // namespace facet
