#include "router/core/request_queue.h"

#include <gtest/gtest.h>

#include "base/status.h"

namespace facet {
namespace {

QueuedRequest Queued(uint64_t id, int priority, TimeUs deadline, int64_t tokens = 10) {
  return {.id = RequestId{id}, .priority = priority, .deadline = deadline, .tokens = tokens};
}

TEST(RequestQueue, ServesPriorityThenDeadlineThenArrival) {
  RequestQueue queue({});
  queue.Push(Queued(1, 0, 500));
  queue.Push(Queued(2, 0, kNever));
  queue.Push(Queued(3, 5, kNever));
  queue.Push(Queued(4, 0, 400));
  queue.Push(Queued(5, 0, 400));
  queue.Push(Queued(6, -1, 1));
  std::vector<uint64_t> order;
  while (const auto front = queue.Front()) {
    order.push_back(front->value);
    queue.Remove(*front);
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{3, 4, 5, 1, 2, 6}));
  EXPECT_EQ(queue.tokens(), 0);
}

TEST(RequestQueue, RefusesBeyondItsBounds) {
  RequestQueue queue({.requests_max = 2, .tokens_max = 100});
  queue.Push(Queued(1, 0, kNever, 60));
  EXPECT_TRUE(queue.Admit(40).ok());
  const absl::Status tokens = queue.Admit(41);
  EXPECT_TRUE(absl::IsResourceExhausted(tokens));
  EXPECT_NE(MessageOf(tokens).find("the bound of 100"), std::string::npos) << tokens;
  queue.Push(Queued(2, 0, kNever, 10));
  EXPECT_TRUE(absl::IsResourceExhausted(queue.Admit(1)));
  queue.Remove(RequestId{2});
  queue.Shrink(RequestId{1}, 50);
  EXPECT_EQ(queue.tokens(), 10);
  EXPECT_TRUE(queue.Admit(90).ok());
}

TEST(RequestQueue, TakesAnyRequestWhileEmpty) {
  RequestQueue queue({.requests_max = 1, .tokens_max = 10});
  EXPECT_TRUE(queue.Admit(1000).ok());
}

}  // namespace
}  // namespace facet
