#include "base/check.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

TEST(CheckDeathTest, StopsTheProcessWithPlaceConditionAndMessage) {
  const int n = 3;
  EXPECT_DEATH(FACET_CHECK(n > 5, "n is {}", n),
               "check_test.cc:[0-9]+: check failed: n > 5 n is 3");
  EXPECT_DEATH(FACET_CHECK(n > 5), "check failed: n > 5");
}

TEST(Check, EvaluatesItsConditionOnceAndItsMessageNever) {
  int conditions = 0;
  int messages = 0;
  FACET_CHECK(++conditions == 1, "{}", ++messages);
  EXPECT_EQ(conditions, 1);
  EXPECT_EQ(messages, 0);
}

}  // namespace
}  // namespace facet
