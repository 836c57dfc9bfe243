#ifndef FACET_CLIENT_EVENT_LOOP_H_
#define FACET_CLIENT_EVENT_LOOP_H_

#include <grpcpp/completion_queue.h>

#include "client/answer.h"

namespace facet {

// The end of an operation that gRPC was given: its address is the operation's tag.
class LoopEvent {
 public:
  virtual void OnEvent(bool ok) = 0;

 protected:
  ~LoopEvent() = default;
};

// Many calls on one thread: whoever runs the loop hears how their operations end. A thread for each
// call would be woken for each message.
class EventLoop {
 public:
  // REQUIRES: no operation is under way.
  ~EventLoop();

  // For operations whose tags are LoopEvents. They may be started on any thread.
  grpc::CompletionQueue& queue() { return queue_; }
  // Handles the next event on this thread; false if none came until `until`.
  // REQUIRES: no other thread runs the loop.
  bool RunOne(ClientClock::time_point until);

 private:
  grpc::CompletionQueue queue_;
};

// `time`, for gRPC's timers.
gpr_timespec ToGrpc(ClientClock::time_point time);

}  // namespace facet

#endif  // FACET_CLIENT_EVENT_LOOP_H_
