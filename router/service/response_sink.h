#ifndef FACET_ROUTER_SERVICE_RESPONSE_SINK_H_
#define FACET_ROUTER_SERVICE_RESPONSE_SINK_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/inference.pb.h"
#include "router/core/refusal.h"
#include "router/core/request.h"
#include "serving/grpc_status.h"
#include "serving/retry_delay.h"

namespace facet {

// Where the answer to one call goes. Everything happens on the core's thread, but for what says
// otherwise (and Finish, on the thread that took the call, if the core never sees it).
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;

  enum class Room {
    kMore,
    kFull,    // taken, but too much waits for its reader: the next part after on_drained, please
    kTooBig,  // dropped: no answer may be that big, and the call should end
  };
  // The next part of the answer. It may wait for Flush(), so that what belongs together goes in one
  // message.
  virtual Room Write(v1::GenerateResponse part) = 0;
  virtual void Flush() = 0;
  // Ends the call once what was written has gone. Nothing follows.
  virtual void Finish(const absl::Status& status) = 0;

  // The client has gone away. Any thread.
  bool cancelled() const { return cancelled_; }
  // What to do, on any thread, when it goes; and when what was written has gone after the sink was
  // full. Must not keep the sink alive. Any thread.
  void SetEvents(std::function<void()> on_cancel, std::function<void()> on_drained) {
    absl::MutexLock lock(&events_mutex_);
    on_cancel_ = std::move(on_cancel);
    on_drained_ = std::move(on_drained);
  }

 protected:
  void NoteCancel() {
    cancelled_ = true;
    Run(on_cancel_);
  }
  void NoteDrained() { Run(on_drained_); }
  // The status as gRPC carries it; a refusal that may be repeated says when.
  static grpc::Status FinalStatus(grpc::ServerContextBase& context, const absl::Status& status) {
    const std::optional<TimeUs> after = RetryAfter(status);
    if (!after || status.ok()) return ToGrpc(status);
    return WithRetryDelay(ToGrpc(status), std::chrono::milliseconds((*after + 999) / 1000),
                          context);
  }

 private:
  void Run(const std::function<void()>& event) {
    std::function<void()> copy;
    {
      absl::MutexLock lock(&events_mutex_);
      copy = event;
    }
    if (copy) copy();
  }

  std::atomic<bool> cancelled_ = false;
  absl::Mutex events_mutex_;
  std::function<void()> on_cancel_;  // both guarded by events_mutex_
  std::function<void()> on_drained_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_RESPONSE_SINK_H_
