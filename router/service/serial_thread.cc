#include "router/service/serial_thread.h"

#include <grpc/support/time.h>
#include <pthread.h>

#include <chrono>
#include <limits>
#include <utility>

namespace facet {
namespace {

// The clock of MonotonicNow() is gRPC's, too.
gpr_timespec DeadlineOf(TimeUs wake) {
  if (wake == kNever) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  return gpr_time_from_micros(wake, GPR_CLOCK_MONOTONIC);
}

}  // namespace

TimeUs MonotonicNow() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

SerialThread::SerialThread(absl::AnyInvocable<TimeUs()> turn,
                           std::unique_ptr<grpc::CompletionQueue> queue)
    : turn_(std::move(turn)), queue_(std::move(queue)), thread_([this] { Run(); }) {}

SerialThread::~SerialThread() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  NoteNews();
  thread_.join();
  // Not before: a queue that is shut down takes no alarm any more, and the last may just be set.
  queue_->Shutdown();
  void* tag = nullptr;
  bool ok = false;
  while (queue_->Next(&tag, &ok)) static_cast<QueueEvent*>(tag)->OnEvent(ok);
}

void SerialThread::Post(Task task) { TryPost(std::move(task), std::numeric_limits<size_t>::max()); }

bool SerialThread::TryPost(Task task, size_t waiting_max) {
  {
    absl::MutexLock lock(&mutex_);
    if (tasks_.size() >= waiting_max) return false;
    tasks_.push_back(std::move(task));
  }
  NoteNews();
  return true;
}

void SerialThread::NoteNews() {
  // The thread says that it falls asleep before it looks for news, so one of the two sees the
  // other.
  news_ = true;
  if (!asleep_ || waking_.exchange(true)) return;
  alarm_.Set(queue_.get(), gpr_inf_past(GPR_CLOCK_MONOTONIC), static_cast<QueueEvent*>(&woken_));
}

bool SerialThread::OnWoken(bool) {
  waking_ = false;
  return false;
}

SerialThread::Happened SerialThread::Await(TimeUs wake) {
  asleep_ = true;
  const gpr_timespec until = news_ ? gpr_inf_past(GPR_CLOCK_MONOTONIC) : DeadlineOf(wake);
  void* tag = nullptr;
  Happened happened;
  const auto next = queue_->AsyncNext(&tag, &happened.ok, until);
  asleep_ = false;
  if (next == grpc::CompletionQueue::GOT_EVENT) happened.event = static_cast<QueueEvent*>(tag);
  if (!news_.exchange(false)) return happened;
  absl::MutexLock lock(&mutex_);
  batch_.swap(tasks_);
  happened.over = stopping_ && batch_.empty();
  if (stopping_) news_ = true;  // until it is over
  return happened;
}

void SerialThread::Run() {
  pthread_setname_np(pthread_self(), "facet-core");
  TimeUs wake = kNever;
  for (bool over = false; !over;) {
    const Happened happened = Await(wake);
    over = happened.over;
    bool due = !batch_.empty();
    if (happened.event != nullptr) due = happened.event->OnEvent(happened.ok) || due;
    for (Task& task : batch_) task();
    batch_.clear();
    if (due || MonotonicNow() >= wake) wake = turn_();
  }
}

}  // namespace facet
