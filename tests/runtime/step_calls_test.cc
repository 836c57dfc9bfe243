// A step that decodes asks nothing of the system, however its tokens are chosen: no call of the
// kernel but to park and to wake who has parked, and no lock.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

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

class StepCallsOf : public StepCalls,
                    public ::testing::WithParamInterface<std::tuple<Shape, StepKind>> {};

TEST_P(StepCallsOf, ADecodeAsksNothingOfTheSystem) {
  const auto& [shape, kind] = GetParam();
  const auto [world, threads] = shape;
  SteppedGroup group({.world = world, .threads = threads, .kind = kind});
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
  EXPECT_EQ(locks, 0);
}

INSTANTIATE_TEST_SUITE_P(Shapes, StepCallsOf,
                         ::testing::Combine(::testing::Values(Shape{1, 1}, Shape{1, 3}, Shape{2, 1},
                                                              Shape{2, 2}),
                                            ::testing::ValuesIn(StepKinds())),
                         [](const auto& info) {
                           const Shape& shape = std::get<0>(info.param);
                           return fmt::format("{}Of{}Ranks{}Threads", std::get<1>(info.param).name,
                                              shape.world, shape.threads);
                         });

}  // namespace
}  // namespace facet::testing
