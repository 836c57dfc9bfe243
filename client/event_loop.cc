#include "client/event_loop.h"

#include <grpc/support/time.h>

#include <chrono>

namespace facet {

EventLoop::~EventLoop() {
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
  }
}

bool EventLoop::RunOne(ClientClock::time_point until) {
  void* tag = nullptr;
  bool ok = false;
  if (queue_.AsyncNext(&tag, &ok, ToGrpc(until)) != grpc::CompletionQueue::GOT_EVENT) return false;
  static_cast<LoopEvent*>(tag)->OnEvent(ok);
  return true;
}

gpr_timespec ToGrpc(ClientClock::time_point time) {
  if (time == ClientClock::time_point::max()) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  // Both are the system's monotonic clock.
  const auto since = std::chrono::ceil<std::chrono::microseconds>(time.time_since_epoch());
  return gpr_time_from_micros(since.count(), GPR_CLOCK_MONOTONIC);
}

}  // namespace facet
