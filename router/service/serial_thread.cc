#include "router/service/serial_thread.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/time/time.h"

namespace facet {

TimeUs MonotonicNow() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

SerialThread::SerialThread(absl::AnyInvocable<TimeUs()> after_batch)
    : after_batch_(std::move(after_batch)), thread_([this] { Run(); }) {}

SerialThread::~SerialThread() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void SerialThread::Post(Task task) {
  absl::MutexLock lock(&mutex_);
  tasks_.push_back(std::move(task));
}

bool SerialThread::TryPost(Task task, size_t waiting_max) {
  absl::MutexLock lock(&mutex_);
  if (tasks_.size() >= waiting_max) return false;
  tasks_.push_back(std::move(task));
  return true;
}

void SerialThread::Run() {
  pthread_setname_np(pthread_self(), "facet-core");
  TimeUs wake = kNever;
  std::vector<Task> batch;
  for (bool stopping = false; !stopping;) {
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return !tasks_.empty() || stopping_;
      };
      const absl::Duration wait =
          wake == kNever ? absl::InfiniteDuration()
                         : absl::Microseconds(std::max<TimeUs>(0, wake - MonotonicNow()));
      mutex_.AwaitWithTimeout(absl::Condition(&ready), wait);
      batch.swap(tasks_);
      stopping = stopping_;
    }
    for (Task& task : batch) task();
    batch.clear();
    wake = after_batch_();
  }
}

}  // namespace facet
