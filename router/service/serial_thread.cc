#include "router/service/serial_thread.h"

#include <grpc/support/time.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

namespace facet {
namespace {

gpr_timespec DeadlineOf(TimeUs wake) {
  if (wake == kNever) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  return gpr_time_from_micros(std::max<TimeUs>(0, wake - MonotonicNow()), GPR_TIMESPAN);
}

}  // namespace

TimeUs MonotonicNow() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

SerialThread::SerialThread(absl::AnyInvocable<TimeUs()> turn)
    : turn_(std::move(turn)), thread_([this] { Run(); }) {}

SerialThread::~SerialThread() {
  bool wake = false;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    wake = MustWake();
  }
  if (wake) Wake();
  thread_.join();
}

void SerialThread::Post(Task task) { TryPost(std::move(task), std::numeric_limits<size_t>::max()); }

bool SerialThread::TryPost(Task task, size_t waiting_max) {
  bool wake = false;
  {
    absl::MutexLock lock(&mutex_);
    if (tasks_.size() >= waiting_max) return false;
    tasks_.push_back(std::move(task));
    wake = MustWake();
  }
  if (wake) Wake();
  return true;
}

bool SerialThread::MustWake() { return asleep_ && !std::exchange(waking_, true); }

void SerialThread::Wake() {
  alarm_.Set(&queue_, gpr_inf_past(GPR_CLOCK_MONOTONIC), static_cast<QueueEvent*>(&woken_));
}

bool SerialThread::OnWoken(bool) {
  absl::MutexLock lock(&mutex_);
  waking_ = false;
  return false;
}

bool SerialThread::TakeEvent(TimeUs wake) {
  bool asleep = false;
  {
    absl::MutexLock lock(&mutex_);
    asleep = asleep_ = tasks_.empty() && !stopping_;
  }
  void* tag = nullptr;
  bool ok = false;
  const auto next =
      queue_.AsyncNext(&tag, &ok, asleep ? DeadlineOf(wake) : gpr_inf_past(GPR_CLOCK_MONOTONIC));
  if (asleep) {
    absl::MutexLock lock(&mutex_);
    asleep_ = false;
  }
  return next == grpc::CompletionQueue::GOT_EVENT && static_cast<QueueEvent*>(tag)->OnEvent(ok);
}

bool SerialThread::RunTasks() {
  {
    absl::MutexLock lock(&mutex_);
    if (tasks_.empty()) return false;
    batch_.swap(tasks_);
  }
  for (Task& task : batch_) task();
  batch_.clear();
  return true;
}

void SerialThread::Run() {
  pthread_setname_np(pthread_self(), "facet-core");
  const auto stopping = [this] {
    absl::MutexLock lock(&mutex_);
    return stopping_ && tasks_.empty();
  };
  TimeUs wake = kNever;
  while (!stopping()) {
    const bool event_due = TakeEvent(wake);
    const bool tasks_due = RunTasks();
    if (event_due || tasks_due || MonotonicNow() >= wake) wake = turn_();
  }
  queue_.Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) static_cast<QueueEvent*>(tag)->OnEvent(ok);
}

}  // namespace facet
