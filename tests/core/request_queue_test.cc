#include "router/core/request_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class RequestQueueTest : public ::testing::Test {
 protected:
  RequestQueueTest() { Reset({}); }

  void Reset(const RequestQueueOptions& options, TenantSharesOptions tenants = {}) {
    shares_ = std::make_unique<TenantShares>(std::move(tenants));
    queue_ = std::make_unique<RequestQueue>(options, *shares_);
    a_ = *shares_->Enter("a");
    b_ = *shares_->Enter("b");
    c_ = *shares_->Enter("c");
  }
  void TearDown() override { EXPECT_TRUE(queue_->Check().ok()) << queue_->Check(); }

  // Of the request that waits as `id`: 10 tokens and 100 bytes unless told otherwise.
  static QueuedRequest Queued(uint64_t id, TenantSlot tenant, int64_t tokens = 10) {
    return {.id = RequestId{id}, .tenant = tenant, .tokens = tokens, .bytes = 100, .cost = tokens};
  }
  std::optional<RefusalReason> Refused(TenantSlot tenant, const QueueUse& use) {
    std::vector<RequestId> victims;
    const auto refusal = queue_->Admit(tenant, use, victims);
    if (!refusal) return std::nullopt;
    EXPECT_THAT(victims, IsEmpty());
    EXPECT_TRUE(absl::IsResourceExhausted(refusal->status));
    return refusal->reason;
  }
  std::vector<uint64_t> Victims(TenantSlot tenant, const QueueUse& use) {
    std::vector<RequestId> victims;
    const auto refusal = queue_->Admit(tenant, use, victims);
    EXPECT_FALSE(refusal) << refusal->status;
    std::vector<uint64_t> ids;
    for (const RequestId id : victims) ids.push_back(id.value);
    return ids;
  }
  // Takes everything out in its order; each request is charged `prompt_tokens` as it goes.
  std::vector<uint64_t> Drain(int64_t prompt_tokens = 0) {
    std::vector<uint64_t> order;
    while (const auto front = queue_->Front()) {
      EXPECT_TRUE(queue_->Check().ok()) << queue_->Check();
      order.push_back(front->value);
      const TenantSlot tenant = queue_->at(*front).tenant;
      queue_->Remove(*front);
      shares_->ChargePlacement(tenant, prompt_tokens, 0, /*chosen=*/true);
    }
    return order;
  }

  std::unique_ptr<TenantShares> shares_;
  std::unique_ptr<RequestQueue> queue_;
  TenantSlot a_ = 0, b_ = 0, c_ = 0;
};

TEST_F(RequestQueueTest, ServesPriorityThenDeadlineThenArrivalWithinATenant) {
  const auto push = [&](uint64_t id, int priority, TimeUs deadline) {
    QueuedRequest request = Queued(id, a_);
    request.priority = priority;
    request.deadline = deadline;
    queue_->Push(request);
  };
  push(1, 0, 500);
  push(2, 0, kNever);
  push(3, 5, kNever);
  push(4, 0, 400);
  push(5, 0, 400);
  push(6, -1, 1);
  EXPECT_THAT(Drain(), ElementsAre(3, 4, 5, 1, 2, 6));
  EXPECT_EQ(queue_->use(), QueueUse{});
}

TEST_F(RequestQueueTest, TenantsTakeTurnsHoweverManyRequestsTheyHave) {
  for (uint64_t id = 1; id <= 6; ++id) queue_->Push(Queued(id, a_));
  queue_->Push(Queued(7, b_));
  queue_->Push(Queued(8, b_));
  EXPECT_THAT(Drain(10), ElementsAre(1, 7, 2, 8, 3, 4, 5, 6));
}

TEST_F(RequestQueueTest, PriorityDoesNotReachBeyondTheTenant) {
  queue_->Push(Queued(1, a_));
  shares_->ChargePlacement(b_, 1, 0, true);
  QueuedRequest high = Queued(2, b_);
  high.priority = 100;
  queue_->Push(high);
  EXPECT_THAT(Drain(10), ElementsAre(1, 2));
}

TEST_F(RequestQueueTest, WeightsGiveTurnsInProportion) {
  Reset({}, {.weights = {{"a", 3}}});
  for (uint64_t id = 1; id <= 6; ++id) queue_->Push(Queued(id, a_));
  for (uint64_t id = 11; id <= 12; ++id) queue_->Push(Queued(id, b_));
  EXPECT_THAT(Drain(30), ElementsAre(1, 11, 2, 3, 4, 12, 5, 6));
  EXPECT_DOUBLE_EQ(queue_->ShareOf(a_), 1);
}

TEST_F(RequestQueueTest, AReturningTenantIsLiftedToTheLeastThatWait) {
  // b was away while the others worked; c has had more than a.
  shares_->ChargePlacement(a_, 100, 0, true);
  shares_->ChargePlacement(c_, 200, 0, true);
  queue_->Push(Queued(1, a_));
  queue_->Push(Queued(2, c_));
  queue_->Push(Queued(3, b_));
  EXPECT_EQ(shares_->counter(b_), shares_->counter(a_));
  EXPECT_EQ(shares_->floor(), shares_->counter(a_));
  // Its own time away has bought it one turn's tie and nothing more.
  queue_->Push(Queued(4, b_));
  queue_->Push(Queued(5, b_));
  EXPECT_THAT(Drain(60), ElementsAre(1, 3, 4, 2, 5));
}

TEST_F(RequestQueueTest, ATenantThatReturnsToAnEmptyQueueIsLiftedToTheLastTurn) {
  for (uint64_t id = 1; id <= 3; ++id) queue_->Push(Queued(id, a_));
  Drain(10);
  EXPECT_EQ(shares_->floor(), shares_->counter(a_) - 10'000);
  queue_->Push(Queued(4, b_));
  EXPECT_EQ(shares_->counter(b_), shares_->floor());
}

TEST_F(RequestQueueTest, TheFrontFollowsChargesOfWhatIsRunning) {
  queue_->Push(Queued(1, a_));
  queue_->Push(Queued(2, b_));
  EXPECT_EQ(queue_->Front(), RequestId{1});
  shares_->ChargePlacement(a_, 0, 5, /*chosen=*/false);
  shares_->ChargeOutput(a_, 5);
  EXPECT_EQ(queue_->Front(), RequestId{2});
}

TEST_F(RequestQueueTest, RefusesATenantThatFillsItAlone) {
  Reset({.requests_max = 3, .tokens_max = 100, .bytes_max = 1000});
  queue_->Push(Queued(1, a_, 60));
  EXPECT_EQ(Refused(a_, {1, 40, 100}), std::nullopt);
  EXPECT_EQ(Refused(a_, {1, 41, 100}), RefusalReason::kQueueTokens);
  EXPECT_EQ(Refused(a_, {1, 1, 901}), RefusalReason::kQueueBytes);
  queue_->Push(Queued(2, a_));
  queue_->Push(Queued(3, a_));
  EXPECT_EQ(Refused(a_, {1, 1, 1}), RefusalReason::kQueueRequests);
  std::vector<RequestId> victims;
  EXPECT_THAT(MessageOf(queue_->Admit(a_, {1, 1, 1}, victims)->status), HasSubstr("at most 3"));
  queue_->Remove(RequestId{2});
  queue_->Shrink(RequestId{1}, 50, 50);
  EXPECT_EQ(queue_->use(), (QueueUse{2, 20, 200}));
  EXPECT_EQ(Refused(a_, {1, 80, 100}), std::nullopt);
}

TEST_F(RequestQueueTest, TakesAnyRequestWhileEmpty) {
  Reset({.requests_max = 1, .tokens_max = 10});
  EXPECT_EQ(Refused(a_, {1, 1000, 1}), std::nullopt);
}

TEST_F(RequestQueueTest, ATenantBelowItsSharePushesTheFullestOnesLastRequestsOut) {
  Reset({.requests_max = 6});
  for (uint64_t id = 1; id <= 4; ++id) queue_->Push(Queued(id, a_));
  for (uint64_t id = 5; id <= 6; ++id) queue_->Push(Queued(id, b_));
  EXPECT_THAT(Victims(c_, {1, 10, 100}), ElementsAre(4));
  EXPECT_THAT(Victims(b_, {1, 10, 100}), ElementsAre(4));
  EXPECT_EQ(Refused(a_, {1, 10, 100}), RefusalReason::kQueueRequests);
  // Equal parts: who comes is refused, so nobody is pushed to and fro.
  queue_->Remove(RequestId{4});
  queue_->Push(Queued(7, b_));
  EXPECT_EQ(Refused(a_, {1, 10, 100}), RefusalReason::kQueueRequests);
  EXPECT_EQ(Refused(b_, {1, 10, 100}), RefusalReason::kQueueRequests);
  EXPECT_THAT(Victims(c_, {1, 10, 100}), ElementsAre(3));
}

TEST_F(RequestQueueTest, AWeightIsARightToMoreOfTheQueue) {
  Reset({.requests_max = 6}, {.weights = {{"a", 3}}});
  for (uint64_t id = 1; id <= 4; ++id) queue_->Push(Queued(id, a_));
  for (uint64_t id = 5; id <= 6; ++id) queue_->Push(Queued(id, b_));
  EXPECT_THAT(Victims(a_, {1, 10, 100}), ElementsAre(6));
  EXPECT_EQ(Refused(b_, {1, 10, 100}), RefusalReason::kQueueRequests);
}

TEST_F(RequestQueueTest, SeveralMayHaveToLeaveForALongPrompt) {
  Reset({.tokens_max = 100, .evictions_max = 3});
  for (uint64_t id = 1; id <= 9; ++id) queue_->Push(Queued(id, a_));
  EXPECT_THAT(Victims(b_, {1, 40, 100}), ElementsAre(9, 8, 7));
  // One more would have to leave, or the newcomer would have more than who leaves.
  EXPECT_EQ(Refused(b_, {1, 41, 100}), RefusalReason::kQueueTokens);
  Reset({.tokens_max = 100});
  for (uint64_t id = 1; id <= 9; ++id) queue_->Push(Queued(id, a_));
  EXPECT_EQ(Refused(b_, {1, 60, 100}), RefusalReason::kQueueTokens);
}

TEST_F(RequestQueueTest, WhatHasStartedIsNotPushedOut) {
  Reset({.requests_max = 3});
  for (uint64_t id = 1; id <= 3; ++id) queue_->Push(Queued(id, a_));
  queue_->Shrink(RequestId{3}, 1, 1);
  EXPECT_THAT(Victims(b_, {1, 10, 100}), ElementsAre(2));
  queue_->Grow(RequestId{2}, 1, 0);
  queue_->Shrink(RequestId{1}, 1, 1);
  EXPECT_EQ(Refused(b_, {1, 10, 100}), RefusalReason::kQueueRequests);
}

TEST_F(RequestQueueTest, KnowsWhatBecomesHopelessFirst) {
  QueuedRequest request = Queued(1, a_);
  request.hopeless_at = 50;
  queue_->Push(request);
  request = Queued(2, b_);
  request.hopeless_at = 40;
  queue_->Push(request);
  EXPECT_EQ(queue_->FirstHopeless(), std::pair(TimeUs{40}, RequestId{2}));
  queue_->Shrink(RequestId{2}, 1, 1);
  EXPECT_EQ(queue_->FirstHopeless(), std::pair(TimeUs{50}, RequestId{1}));
  queue_->PutOffHopeless(90);
  EXPECT_EQ(queue_->FirstHopeless(), std::pair(TimeUs{90}, RequestId{1}));
  queue_->Remove(RequestId{1});
  EXPECT_FALSE(queue_->FirstHopeless());
}

TEST_F(RequestQueueTest, KnowsTheWorkBeforeARequest) {
  queue_->Push(Queued(1, a_, 10));
  QueuedRequest high = Queued(2, a_, 5);
  high.priority = 1;
  queue_->Push(high);
  queue_->Push(Queued(3, b_, 100));
  EXPECT_EQ(queue_->CostBefore(a_, 0), 15);
  EXPECT_EQ(queue_->CostBefore(a_, 1), 5);
  EXPECT_EQ(queue_->CostBefore(a_, 2), 0);
  EXPECT_DOUBLE_EQ(queue_->ShareOf(a_), 0.5);
  EXPECT_DOUBLE_EQ(queue_->ShareOf(c_), 1.0 / 3);
}

}  // namespace
}  // namespace facet
