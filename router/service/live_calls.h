#ifndef FACET_ROUTER_SERVICE_LIVE_CALLS_H_
#define FACET_ROUTER_SERVICE_LIVE_CALLS_H_

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/check.h"

namespace facet {

// Counts the calls that gRPC still works on, and closes the door when the router drains.
// Thread-safe.
class LiveCalls {
 public:
  // False once the door is closed; the call is counted all the same, until End().
  bool Begin() {
    absl::MutexLock lock(&mutex_);
    ++calls_;
    return open_;
  }
  void End() {
    absl::MutexLock lock(&mutex_);
    FACET_CHECK(calls_ > 0, "a call has ended twice");
    --calls_;
  }
  void Close() {
    absl::MutexLock lock(&mutex_);
    open_ = false;
  }
  // True if no call was left before `timeout` had passed.
  bool WaitForNone(absl::Duration timeout) {
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_ == 0; };
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&none), timeout);
  }

 private:
  absl::Mutex mutex_;
  int64_t calls_ ABSL_GUARDED_BY(mutex_) = 0;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LIVE_CALLS_H_
