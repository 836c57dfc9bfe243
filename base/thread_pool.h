#ifndef FACET_BASE_THREAD_POOL_H_
#define FACET_BASE_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace facet {

// The compute threads of one rank: `threads` in all, the caller being one of them. Workers spin
// for a few microseconds between regions and then sleep, because a thread that spins on a core
// another process wants costs that process a scheduler tick.
// One caller at a time; a region must not start another region of the same pool.
class ThreadPool {
 public:
  // Each thread but the caller's calls `begin(thread)` before anything else; it may be empty.
  explicit ThreadPool(int threads, const std::function<void(int thread)>& begin = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(task, thread) once for every task in [0, tasks), tasks handed out in order to
  // whichever thread is free; returns when all are done. `thread` is in [0, threads()).
  template <typename Body>
  void ParallelFor(int64_t tasks, const Body& body) {
    if (workers_.empty() || tasks <= 1) {
      for (int64_t task = 0; task < tasks; ++task) body(task, 0);
      return;
    }
    Region region{&Invoke<Body>, &body, tasks};
    Run(region);
  }

 private:
  struct Region {
    void (*invoke)(const void* body, int64_t task, int thread);
    const void* body;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    Region(void (*f)(const void*, int64_t, int), const void* b, int64_t n)
        : invoke(f), body(b), tasks(n) {}
  };
  template <typename Body>
  static void Invoke(const void* body, int64_t task, int thread) {
    (*static_cast<const Body*>(body))(task, thread);
  }

  void Run(Region& region);
  void Work(int thread);
  static void Drain(Region& region, int thread);

  std::vector<std::thread> workers_;
  Region* region_ = nullptr;              // published by generation_
  std::atomic<uint32_t> generation_{0};   // one step per region, and one at shutdown
  std::atomic<int> running_{0};           // workers still inside the current region
  std::atomic<bool> stop_{false};
};

}  // namespace facet

#endif  // FACET_BASE_THREAD_POOL_H_
