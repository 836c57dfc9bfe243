#ifndef FACET_SHARD_WORKER_SERVICE_TICKER_H_
#define FACET_SHARD_WORKER_SERVICE_TICKER_H_

#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "shard_worker/engine/engine.h"

namespace facet {

// Calls a function again and again on a thread of its own.
class Ticker {
 public:
  // The first call comes at once, the next ones `period` after the end of the one before.
  Ticker(std::string thread_name, TimeUs period, std::function<void()> tick);
  // Waits for the end of a call that runs.
  ~Ticker();
  Ticker(const Ticker&) = delete;
  Ticker& operator=(const Ticker&) = delete;

 private:
  void Run(const std::string& thread_name);

  const TimeUs period_;
  const std::function<void()> tick_;
  absl::Mutex mutex_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_TICKER_H_
