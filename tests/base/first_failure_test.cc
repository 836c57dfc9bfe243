#include "base/first_failure.h"

#include <gtest/gtest.h>

#include "base/status.h"
#include "base/thread_pool.h"

namespace facet {
namespace {

TEST(FirstFailure, IsOkWhereNothingFails) {
  FirstFailure failure;
  failure.Note(3, absl::OkStatus());
  EXPECT_FALSE(failure.Before(INT64_MAX));
  EXPECT_TRUE(failure.Take().ok());
}

TEST(FirstFailure, OnlyWhatComesAfterItNeedNotBeDone) {
  FirstFailure failure;
  failure.Note(3, InvalidArgument("three"));
  EXPECT_FALSE(failure.Before(2));
  EXPECT_FALSE(failure.Before(3));
  EXPECT_TRUE(failure.Before(4));
  failure.Note(5, InvalidArgument("five"));
  failure.Note(1, InvalidArgument("one"));
  EXPECT_TRUE(failure.Before(2));
  EXPECT_EQ(MessageOf(failure.Take()), "one");
}

TEST(FirstFailure, IsTheSameHoweverThreadsRun) {
  ThreadPool pool(3);
  for (int round = 0; round < 200; ++round) {
    FirstFailure failure;
    pool.ParallelFor(50, [&](int64_t task, int) {
      if (failure.Before(task)) return;
      if (task % 7 == 6) failure.Note(task, InvalidArgument("task {}", task));
    });
    EXPECT_EQ(MessageOf(failure.Take()), "task 6");
  }
}

}  // namespace
}  // namespace facet
