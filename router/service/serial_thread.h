#ifndef FACET_ROUTER_SERVICE_SERIAL_THREAD_H_
#define FACET_ROUTER_SERVICE_SERIAL_THREAD_H_

#include <cstddef>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"
#include "router/core/request.h"

namespace facet {

// Microseconds of the process's monotonic clock.
TimeUs MonotonicNow();

// One thread that runs posted tasks in order. After each batch, and when the time it asked for has
// come, it calls `after_batch`, which returns when it wants to be called next (kNever: only after
// tasks). What only these functions touch needs no lock.
class SerialThread {
 public:
  using Task = absl::AnyInvocable<void()>;

  explicit SerialThread(absl::AnyInvocable<TimeUs()> after_batch);
  // Runs what is posted already, then joins. No Post() may follow.
  ~SerialThread();
  SerialThread(const SerialThread&) = delete;
  SerialThread& operator=(const SerialThread&) = delete;

  // For tasks whose number something else bounds. Any thread, this one included.
  void Post(Task task);
  // False, without the task, if `waiting_max` tasks wait already. Any thread.
  bool TryPost(Task task, size_t waiting_max);

 private:
  void Run();

  absl::AnyInvocable<TimeUs()> after_batch_;
  absl::Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_SERIAL_THREAD_H_
