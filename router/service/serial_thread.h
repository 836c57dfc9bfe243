#ifndef FACET_ROUTER_SERVICE_SERIAL_THREAD_H_
#define FACET_ROUTER_SERVICE_SERIAL_THREAD_H_

#include <grpcpp/alarm.h>
#include <grpcpp/completion_queue.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "router/core/request.h"

namespace facet {

// Microseconds of the process's monotonic clock.
TimeUs MonotonicNow();

// The end of an operation that gRPC was given: its address is the operation's tag.
class QueueEvent {
 public:
  // True if the thread must take a turn for it; what is posted brings one anyway.
  virtual bool OnEvent(bool ok) = 0;

 protected:
  ~QueueEvent() = default;
};

// An event that a method of its owner handles.
template <auto kHandler>
class MemberEvent;
template <typename Owner, bool (Owner::*kHandler)(bool ok)>
class MemberEvent<kHandler> final : public QueueEvent {
 public:
  explicit MemberEvent(Owner* owner) : owner_(owner) {}
  bool OnEvent(bool ok) override { return (owner_->*kHandler)(ok); }

 private:
  Owner* const owner_;
};

// One thread that runs what gRPC reports on its queue, and posted tasks in order. It takes a turn
// after each batch of tasks, after events that ask for one, and when the time that the last turn
// asked for has come (to the millisecond, never early). What only these functions touch needs no
// lock.
class SerialThread {
 public:
  using Task = absl::AnyInvocable<void()>;

  // `turn` returns when it wants to be called next, if nothing else happens; or kNever. `queue`:
  // the one to look after, for instance a server's.
  explicit SerialThread(
      absl::AnyInvocable<TimeUs()> turn,
      std::unique_ptr<grpc::CompletionQueue> queue = std::make_unique<grpc::CompletionQueue>());
  // Runs what is posted already, then joins. Every Post() must have returned. What is still on the
  // queue ends here. REQUIRES: that is only what needs nobody's help to end.
  ~SerialThread();
  SerialThread(const SerialThread&) = delete;
  SerialThread& operator=(const SerialThread&) = delete;

  // For tasks whose number something else bounds. Any thread, this one included.
  void Post(Task task);
  // False, without the task, if `waiting_max` tasks wait already. Any thread.
  bool TryPost(Task task, size_t waiting_max);

  // For operations that end on this thread; their tags are QueueEvents. The thread looks after the
  // queue while it has nothing else to do, so that such an end wakes nobody else.
  grpc::CompletionQueue& queue() { return *queue_; }

 private:
  void Run();
  struct Happened {
    QueueEvent* event = nullptr;  // null: none
    bool ok = false;
    bool over = false;  // the thread is to stop, and no task waits
  };
  // Waits until `wake` for an event, unless there are tasks; moves those to batch_.
  Happened Await(TimeUs wake);
  // There are tasks, or it is time to stop. Wakes the thread if it sleeps.
  void NoteNews();
  bool OnWoken(bool ok);

  absl::AnyInvocable<TimeUs()> turn_;
  const std::unique_ptr<grpc::CompletionQueue> queue_;
  grpc::Alarm alarm_;  // wakes the thread; set again only after OnWoken()
  MemberEvent<&SerialThread::OnWoken> woken_{this};
  std::atomic<bool> asleep_ = false;  // or about to be
  std::atomic<bool> waking_ = false;  // from setting the alarm until OnWoken()
  std::atomic<bool> news_ = false;    // for a look below; an event without any takes no lock
  absl::Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Task> batch_;  // the thread's own, kept for its memory
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_SERIAL_THREAD_H_
