#include "base/thread_pool.h"

#include "base/check.h"

namespace facet {
namespace {

// About 10 us of pauses on current cores: longer than the gap between two regions of a step,
// shorter than anything a neighbour on the core would notice.
constexpr int kSpins = 400;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, const std::function<void(int thread)>& begin) {
  FACET_CHECK(threads >= 1, "threads is {}", threads);
  workers_.reserve(static_cast<size_t>(threads) - 1);
  for (int thread = 1; thread < threads; ++thread) {
    workers_.emplace_back([this, thread, begin] {
      if (begin) begin(thread);
      Work(thread);
    });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(Region& region) {
  region_ = &region;
  running_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  Drain(region, 0);
  for (int spin = 0; running_.load(std::memory_order_acquire) != 0; ++spin) {
    if (spin < kSpins) {
      Pause();
    } else if (int running = running_.load(std::memory_order_acquire); running != 0) {
      running_.wait(running, std::memory_order_acquire);
    }
  }
}

void ThreadPool::Drain(Region& region, int thread) {
  for (int64_t task = region.next.fetch_add(1, std::memory_order_relaxed); task < region.tasks;
       task = region.next.fetch_add(1, std::memory_order_relaxed)) {
    region.invoke(region.body, task, thread);
  }
}

void ThreadPool::Work(int thread) {
  uint32_t seen = 0;
  while (true) {
    for (int spin = 0; generation_.load(std::memory_order_acquire) == seen; ++spin) {
      if (spin < kSpins) {
        Pause();
      } else {
        generation_.wait(seen, std::memory_order_acquire);
      }
    }
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    Drain(*region_, thread);
    if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_one();
  }
}

}  // namespace facet
