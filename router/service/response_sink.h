#ifndef FACET_ROUTER_SERVICE_RESPONSE_SINK_H_
#define FACET_ROUTER_SERVICE_RESPONSE_SINK_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/inference.pb.h"
#include "router/core/request.h"

namespace facet {

// Where the answer to one call goes; the call's reactor is one. Writing happens on the core's
// thread (Finish also on the one that made the sink, if the core never sees it).
class ResponseSink {
 public:
  virtual ~ResponseSink() = default;

  // The next part of the answer. False if it was dropped because too much of the answer waits for
  // its reader: the call should end.
  virtual bool Write(v1::GenerateResponse part) = 0;
  // Ends the call once what was written has gone. Nothing follows.
  virtual void Finish(const absl::Status& status) = 0;
  // Gives up a client that does not read what it was sent. False once the call is over.
  virtual bool Sweep(TimeUs now) = 0;

  // The client has gone away. Any thread.
  bool cancelled() const { return cancelled_; }
  // What to do on one of gRPC's threads when it does. Must not keep the sink alive.
  void SetOnCancel(std::function<void()> on_cancel) {
    absl::MutexLock lock(&on_cancel_mutex_);
    on_cancel_ = std::move(on_cancel);
  }

 protected:
  void NoteCancel() {
    cancelled_ = true;
    std::function<void()> on_cancel;
    {
      absl::MutexLock lock(&on_cancel_mutex_);
      on_cancel = on_cancel_;
    }
    if (on_cancel) on_cancel();
  }
  // A full queue says when to come back; gRPC clients with a retry policy obey this.
  static void AddRetryDelay(grpc::CallbackServerContext& context, const absl::Status& status) {
    if (absl::IsResourceExhausted(status)) {
      context.AddTrailingMetadata("grpc-retry-pushback-ms", "1000");
    }
  }

 private:
  std::atomic<bool> cancelled_ = false;
  absl::Mutex on_cancel_mutex_;
  std::function<void()> on_cancel_ ABSL_GUARDED_BY(on_cancel_mutex_);
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_RESPONSE_SINK_H_
