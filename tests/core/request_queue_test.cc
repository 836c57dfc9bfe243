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
  EXPECT_FALSE(queue.Admit(40));
  const std::optional<Refusal> tokens = queue.Admit(41);
  ASSERT_TRUE(tokens);
  EXPECT_EQ(tokens->reason, RefusalReason::kQueueTokens);
  EXPECT_TRUE(absl::IsResourceExhausted(tokens->status));
  EXPECT_NE(MessageOf(tokens->status).find("the bound of 100"), std::string::npos);
  queue.Push(Queued(2, 0, kNever, 10));
  ASSERT_TRUE(queue.Admit(1));
  EXPECT_EQ(queue.Admit(1)->reason, RefusalReason::kQueueRequests);
  queue.Remove(RequestId{2});
  queue.Shrink(RequestId{1}, 50);
  EXPECT_EQ(queue.tokens(), 10);
  EXPECT_FALSE(queue.Admit(90));
}

TEST(RequestQueue, TakesAnyRequestWhileEmpty) {
  RequestQueue queue({.requests_max = 1, .tokens_max = 10});
  EXPECT_FALSE(queue.Admit(1000));
}

}  // namespace
}  // namespace facet
