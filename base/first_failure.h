#ifndef FACET_BASE_FIRST_FAILURE_H_
#define FACET_BASE_FIRST_FAILURE_H_

#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>

#include "absl/status/status.h"

namespace facet {

// The error of the lowest task, of tasks that are handed out in order to several threads: the same
// one each time, however they run. Thread-safe.
class FirstFailure {
 public:
  // Whether a task before this one has failed: nobody asks then what becomes of this one.
  bool Before(int64_t task) const { return task_.load(std::memory_order_relaxed) < task; }
  void Note(int64_t task, absl::Status status) {
    if (status.ok()) return;
    const std::lock_guard lock(mutex_);
    if (Before(task)) return;
    task_.store(task, std::memory_order_relaxed);
    status_ = std::move(status);
  }
  // Once all tasks have ended.
  absl::Status Take() { return std::move(status_); }

 private:
  std::mutex mutex_;
  std::atomic<int64_t> task_{INT64_MAX};
  absl::Status status_;
};

}  // namespace facet

#endif  // FACET_BASE_FIRST_FAILURE_H_
