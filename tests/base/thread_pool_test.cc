#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <thread>
#include <vector>

namespace facet {
namespace {

class ThreadPools : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Threads, ThreadPools, ::testing::Values(1, 2, 3, 8));

TEST_P(ThreadPools, RunEveryTaskOnceAndShowItsWritesToTheCaller) {
  ThreadPool pool(GetParam());
  EXPECT_EQ(pool.threads(), GetParam());
  for (const int64_t tasks : {0, 1, 2, 7, 1'000}) {
    std::vector<int> runs(static_cast<size_t>(tasks), 0);  // plain ints: each has one writer
    pool.ParallelFor(tasks, [&](int64_t task, int thread) {
      EXPECT_TRUE(thread >= 0 && thread < GetParam());
      ++runs[static_cast<size_t>(task)];
    });
    EXPECT_EQ(runs, std::vector<int>(static_cast<size_t>(tasks), 1));
  }
}

TEST_P(ThreadPools, AThreadIndexIsUsedByOneThreadOnly) {
  ThreadPool pool(GetParam());
  std::vector<std::thread::id> ids(static_cast<size_t>(GetParam()));
  std::vector<int64_t> per_thread(static_cast<size_t>(GetParam()), 0);
  for (int region = 0; region < 100; ++region) {
    pool.ParallelFor(50, [&](int64_t, int thread) {
      if (ids[thread] == std::thread::id()) ids[thread] = std::this_thread::get_id();
      EXPECT_EQ(ids[thread], std::this_thread::get_id());
      ++per_thread[thread];  // scratch memory of a thread needs no lock
    });
  }
  EXPECT_EQ(std::accumulate(per_thread.begin(), per_thread.end(), int64_t{0}), 5'000);
  EXPECT_TRUE(per_thread[0] == 0 || ids[0] == std::this_thread::get_id());  // the caller is 0
}

TEST_P(ThreadPools, ManyShortRegionsSeeEachOther) {
  ThreadPool pool(GetParam());
  constexpr int64_t kTasks = 16;
  std::vector<int64_t> values(kTasks, 0);
  for (int region = 0; region < 5'000; ++region) {
    // Each region reads what another thread may have written in the one before.
    std::vector<int64_t> next(kTasks);
    pool.ParallelFor(kTasks,
                     [&](int64_t task, int) { next[task] = values[(task + 1) % kTasks] + 1; });
    values = next;
  }
  EXPECT_EQ(values, std::vector<int64_t>(kTasks, 5'000));
}

TEST(ThreadPool, ThreadsWorkAtTheSameTime) {
  ThreadPool pool(3);
  std::atomic<int> inside{0};
  pool.ParallelFor(3, [&](int64_t, int) {
    ++inside;
    while (inside < 3) std::this_thread::yield();  // ends only if all three are inside
  });
  EXPECT_EQ(inside, 3);
}

TEST(ThreadPool, WakesThreadsThatFellAsleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(5);
    while (std::chrono::steady_clock::now() < until) std::this_thread::yield();  // far beyond spins
    std::atomic<int> inside{0};
    pool.ParallelFor(2, [&](int64_t, int) {
      ++inside;
      while (inside < 2) std::this_thread::yield();
    });
    EXPECT_EQ(inside, 2);
  }
}

TEST(ThreadPool, EndsWithoutEverHavingRun) {
  for (int i = 0; i < 50; ++i) ThreadPool pool(4);
}

TEST(ThreadPool, SeveralPoolsLiveSideBySide) {
  std::vector<std::thread> owners;
  std::atomic<int64_t> sum{0};
  for (int owner = 0; owner < 4; ++owner) {
    owners.emplace_back([&] {
      ThreadPool pool(2);
      for (int region = 0; region < 200; ++region) {
        pool.ParallelFor(10, [&](int64_t task, int) { sum += task; });
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
  EXPECT_EQ(sum, 4 * 200 * 45);
}

TEST(ThreadPoolDeathTest, NeedsAThread) { EXPECT_DEATH(ThreadPool(0), "threads is 0"); }

}  // namespace
}  // namespace facet
