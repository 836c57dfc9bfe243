#ifndef FACET_ROUTER_SERVICE_LIVE_CALLS_H_
#define FACET_ROUTER_SERVICE_LIVE_CALLS_H_

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/check.h"
#include "router/service/incoming_call.h"

namespace facet {

// The calls that gRPC still works on. Gives up those whose clients do not read, and closes the door
// when the router drains. Thread-safe.
class LiveCalls {
 public:
  // False once the door is closed; the call is live all the same, until End().
  bool Begin(IncomingCall& call) {
    absl::MutexLock lock(&mutex_);
    calls_.insert(&call);
    return open_;
  }
  void End(IncomingCall& call) {
    absl::MutexLock lock(&mutex_);
    FACET_CHECK(calls_.erase(&call) == 1, "a call has ended twice");
  }
  // Ends the calls whose clients have not read what was sent before `before`; says how many that
  // were. On the core's thread.
  int GiveUpStalled(TimeUs before) {
    absl::MutexLock lock(&mutex_);  // none of them goes meanwhile
    int given_up = 0;
    for (IncomingCall* call : calls_) given_up += call->GiveUpIfStalled(before);
    return given_up;
  }
  void Close() {
    absl::MutexLock lock(&mutex_);
    open_ = false;
  }
  // True if no call was left before `timeout` had passed.
  bool WaitForNone(absl::Duration timeout) {
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return calls_.empty(); };
    absl::MutexLock lock(&mutex_);
    return mutex_.AwaitWithTimeout(absl::Condition(&none), timeout);
  }

 private:
  absl::Mutex mutex_;
  absl::flat_hash_set<IncomingCall*> calls_ ABSL_GUARDED_BY(mutex_);
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LIVE_CALLS_H_
