// A step that decodes asks nothing of the system: no call of the kernel but to park and to wake who
// has parked, and no lock but the one under which its times are summed up when it is over.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>

#include <fmt/format.h>

#include "tests/runtime/call_watch.h"
#include "tests/runtime/stepped_group.h"

namespace facet::testing {
namespace {

using ::testing::IsEmpty;

constexpr int kWarmUp = 6;
constexpr int kSteps = 12;

class StepCalls : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CanWatchCalls()) GTEST_SKIP() << "this kernel cannot tell which calls are made of it";
  }
};

TEST_F(StepCalls, WhatIsCalledIsCounted) {
  std::mutex mutex;
  std::atomic<int> turn = 0;
  std::thread other([&] {
    while (turn == 0) std::this_thread::yield();
    syscall(SYS_getppid);
    turn = 2;
    while (turn == 2) std::this_thread::yield();
  });
  std::map<int, int64_t> made;
  int64_t locks = 0;
  {
    CallWatch watch;
    EXPECT_EQ(syscall(SYS_getpid), getpid());  // and does what it does
    turn = 1;
    while (turn != 2) {
    }
    { const std::lock_guard lock(mutex); }
    made = watch.system_calls();
    locks = watch.locks();
  }
  turn = 3;
  other.join();
  made.erase(SYS_sched_yield);
  EXPECT_EQ(made[SYS_getppid], 1);
  EXPECT_EQ(made[SYS_getpid], 2);
  EXPECT_EQ(made.size(), 2u);
  EXPECT_EQ(locks, 1);
}

struct Shape {
  int world;
  int threads;
};

class StepCallsOf : public StepCalls, public ::testing::WithParamInterface<Shape> {};

TEST_P(StepCallsOf, ADecodeAsksNothingOfTheSystem) {
  const auto [world, threads] = GetParam();
  SteppedGroup group({.world = world, .threads = threads});
  for (int i = 0; i < kWarmUp; ++i) group.Step();
  std::map<int, int64_t> made;
  int64_t locks = 0;
  {
    CallWatch watch;
    for (int i = 0; i < kSteps; ++i) group.Step();
    made = watch.system_calls();
    locks = watch.locks();
  }
  made.erase(SYS_clock_gettime);                   // where the vDSO cannot read the clock
  if (world * threads > 1) made.erase(SYS_futex);  // who waits long, parks
  if (threads > 1) made.erase(SYS_sched_yield);    // as std::atomic's wait() does before it parks
  EXPECT_THAT(made, IsEmpty());
  // A follower may be a step behind at both ends.
  EXPECT_LE(locks, int64_t{world} * (kSteps + 1));
}

INSTANTIATE_TEST_SUITE_P(Shapes, StepCallsOf,
                         ::testing::Values(Shape{1, 1}, Shape{1, 3}, Shape{2, 1}, Shape{2, 2}),
                         [](const auto& info) {
                           return fmt::format("{}Ranks{}Threads", info.param.world,
                                              info.param.threads);
                         });

}  // namespace
}  // namespace facet::testing
