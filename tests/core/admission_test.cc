// Who is let in, who has to leave, and who gives way.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/prefix_hash.h"
#include "base/status.h"
#include "router/core/cache_salt.h"
#include "router/core/refusal.h"
#include "tests/core/router_core_fixture.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RouterRequest Of(const std::string& tenant, const std::string& id, int prompt_tokens = 3,
                 int max_tokens = 8) {
  RouterRequest request = RequestOf(id, prompt_tokens, max_tokens);
  request.tenant = tenant;
  return request;
}

TEST_F(RouterCoreTest, AFloodLosesItsOwnPlacesInTheQueue) {
  Reset({.queue = {.requests_max = 4}});
  for (int i = 0; i < 4; ++i) MustSubmit(Of("flood", "f" + std::to_string(i)));
  const absl::Status refused = core_->Submit(Of("flood", "f4"), now_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_TRUE(RetryAfter(refused));
  EXPECT_EQ(core_->counters().refusals[RefusalReason::kQueueRequests], 1);
  core_->TakeActions();
  MustSubmit(Of("light", "l"));
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.request, RequestId{4});
  EXPECT_TRUE(absl::IsResourceExhausted(out.end->status));
  EXPECT_THAT(MessageOf(out.end->status), HasSubstr("`flood`"));
  EXPECT_TRUE(RetryAfter(out.end->status));
  EXPECT_EQ(core_->counters().sheds[RefusalReason::kTenantShare], 1);
  EXPECT_EQ(core_->stats().queued_requests, 4);
}

TEST_F(RouterCoreTest, BytesAreBoundedToo) {
  Reset({.queue = {.bytes_max = 10'000}});
  RouterRequest request = RequestOf("1");
  request.extra_bytes = 5'000;
  MustSubmit(request);
  request.client_id = "2";
  EXPECT_TRUE(absl::IsResourceExhausted(core_->Submit(request, now_).status()));
  EXPECT_EQ(core_->counters().refusals[RefusalReason::kQueueBytes], 1);
  EXPECT_GT(core_->stats().queued_bytes, 5'000);
}

TEST_F(RouterCoreTest, TenantsAndRequestsAreBounded) {
  Reset({.tenants = {.tenants_max = 1}, .requests_max = 2});
  MustSubmit(Of("a", "1"));
  EXPECT_THAT(MessageOf(core_->Submit(Of("b", "2"), now_).status()), HasSubstr("1 tenants"));
  MustSubmit(Of("a", "2"));
  EXPECT_THAT(MessageOf(core_->Submit(Of("a", "3"), now_).status()), HasSubstr("2 requests"));
  EXPECT_EQ(core_->counters().refusals[RefusalReason::kTenants], 1);
  EXPECT_EQ(core_->counters().refusals[RefusalReason::kRequests], 1);
}

// A group takes one request of 10 tokens every 100 ms; the target is a second.
class TtftTest : public RouterCoreTest {
 protected:
  TtftTest() { Reset({.tenants = {.output_cost = 0}, .ttft_target_us = kSecond}); }

  void Serve() {
    now_ += kSecond / 10;
    core_->Tick(now_);
    core_->OnGroupState(a_, {.credit_tokens = 10}, now_);
  }
};

TEST_F(TtftTest, RefusesWhatWouldComeTooLateAndSaysWhenToComeAgain) {
  Up(a_, 10);
  int accepted = 0;
  absl::Status refusal;
  for (int i = 0; i < 30; ++i) {
    for (int j = 0; j < 2; ++j) {  // twice as many as are served
      const auto id =
          core_->Submit(RequestOf(std::to_string(i) + "." + std::to_string(j), 10), now_);
      accepted += id.ok();
      if (!id.ok()) refusal = id.status();
    }
    Serve();
    if (i > 0) {
      EXPECT_GT(core_->stats().queued_requests, 0) << "the group starves";
    }
    EXPECT_LE(core_->stats().queued_requests, 13);
  }
  EXPECT_TRUE(absl::IsResourceExhausted(refusal));
  EXPECT_THAT(MessageOf(refusal), HasSubstr("first token"));
  EXPECT_LE(*RetryAfter(refusal), kSecond);
  EXPECT_GT(core_->counters().refusals[RefusalReason::kTtft], 10);
  EXPECT_GT(accepted, 30);
}

TEST_F(TtftTest, RefusesNothingWhileAGroupHasRoom) {
  Up(a_, 1'000'000);
  for (int i = 0; i < 100; ++i) MustSubmit(RequestOf(std::to_string(i), 50));
  EXPECT_EQ(core_->TakeActions().submits.size(), 100u);
}

TEST_F(TtftTest, TurnsAwayWhatHasWaitedTooLong) {
  Up(a_, 10);
  MustSubmit(RequestOf("runs", 10));
  const RequestId waits = MustSubmit(RequestOf("waits", 10));
  core_->TakeActions();
  EXPECT_EQ(core_->NextWake(), kSecond / 10);  // fairness looks first, in vain
  core_->Tick(kSecond / 10);
  EXPECT_EQ(core_->NextWake(), kSecond);
  core_->Tick(kSecond - 1);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->Tick(kSecond);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.request, waits);
  EXPECT_TRUE(absl::IsResourceExhausted(out.end->status));
  EXPECT_EQ(core_->counters().sheds[RefusalReason::kTtft], 1);
}

TEST_F(TtftTest, WaitingForAGroupIsNoOverload) {
  const RequestId early = MustSubmit(RequestOf("early", 10));
  now_ = 5 * kSecond;
  core_->Tick(now_);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->OnGroupUp(a_, {.fingerprint = "f", .context_tokens = 100});
  core_->Tick(now_);
  EXPECT_EQ(core_->stats().queued_requests, 1);
  MustSubmit(RequestOf("late", 10));
  core_->OnGroupState(a_, {.credit_tokens = 10}, now_);
  EXPECT_EQ(TheSubmit().sequence, SequenceId{1});
  core_->Tick(now_ + kSecond - 1);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->Tick(now_ + kSecond);
  EXPECT_NE(TheDelta().request, early);
}

TEST_F(RouterCoreTest, RetriesBeforeTheFirstTokenAreBudgeted) {
  Reset({.retries = {.per_thousand_requests = 0, .burst = 1}});
  Up(a_);
  Up(b_);
  for (const char* name : {"1", "2", "3"}) MustSubmit(RequestOf(name));
  const CoreActions actions = core_->TakeActions();
  const SubmitAction& third = actions.submits[2];
  core_->OnDelta(third.group, Tokens(third.sequence, 0, {10}), now_);
  core_->TakeActions();
  LeaderDelta refusal = FinishOf(actions.submits[0].sequence, 0, EndReason::kError);
  refusal.error = Unavailable("draining");
  core_->OnDelta(actions.submits[0].group, refusal, now_);
  EXPECT_EQ(TheSubmit().group, b_);
  refusal.sequence = actions.submits[1].sequence;
  core_->OnDelta(actions.submits[1].group, refusal, now_);
  const ChoiceDelta out = TheDelta();
  EXPECT_TRUE(absl::IsUnavailable(out.end->status));
  EXPECT_TRUE(RetryAfter(out.end->status));
  // What has tokens migrates, whatever the budget.
  core_->OnDelta(third.group, FinishOf(third.sequence, 1, EndReason::kCancelled), now_);
  EXPECT_THAT(TheSubmit().tokens, ElementsAre(7, 7, 7, 10));
  EXPECT_EQ(core_->counters().retries, 1);
  EXPECT_EQ(core_->counters().sheds[RefusalReason::kRetries], 1);
  EXPECT_EQ(core_->counters().migrations, 1);
}

TEST_F(RouterCoreTest, TheYoungestOfATenantWithMuchMoreGivesWay) {
  Reset({.fairness = {.unfair_wait_us = 1000, .skew_max = 2, .interval_us = 500}});
  Up(a_, 12);
  for (int i = 0; i < 4; ++i) MustSubmit(Of("hog", std::to_string(i)));
  CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 4u);
  const SubmitAction youngest = actions.submits[3];
  core_->OnDelta(a_, Tokens(youngest.sequence, 0, {10}), now_);
  MustSubmit(Of("late", "l"));
  core_->TakeActions();
  EXPECT_EQ(core_->NextWake(), 1000);
  core_->Tick(999);
  EXPECT_TRUE(core_->TakeActions().cancels.empty());
  core_->Tick(1000);
  actions = core_->TakeActions();
  ASSERT_EQ(actions.cancels.size(), 1u);
  EXPECT_EQ(actions.cancels[0].sequence, youngest.sequence);
  EXPECT_TRUE(actions.deltas.empty());
  EXPECT_EQ(core_->counters().preemptions, 1);
  // Its place goes to who waited; three against none would be too much, three against one is not.
  core_->OnGroupState(a_, {.running = 3, .credit_tokens = 1}, 1200);
  EXPECT_THAT(TheSubmit().tokens, ElementsAre(7, 7, 7));
  core_->Tick(5000);
  EXPECT_TRUE(core_->TakeActions().cancels.empty());
  // And it goes on when there is room, with its token, not charged again.
  const auto hog = [&] {
    for (const TenantStats& tenant : core_->TopTenants(2)) {
      if (tenant.name == "hog") return tenant;
    }
    return TenantStats{};
  };
  const int64_t counter = hog().counter;
  core_->OnGroupState(a_, {.running = 4, .credit_tokens = 9}, 6000);
  EXPECT_THAT(TheSubmit().tokens, ElementsAre(7, 7, 7, 10));
  EXPECT_EQ(hog().counter, counter);
  EXPECT_EQ(hog().running_sequences, 4);
}

TEST_F(RouterCoreTest, NobodyGivesWayTwiceTooOften) {
  Reset({.fairness = {.unfair_wait_us = 1000, .skew_max = 0, .preemptions_max = 1}});
  Up(a_, 3);
  MustSubmit(Of("hog", "h"));
  MustSubmit(Of("late", "l", 3, 1));
  core_->TakeActions();
  core_->Tick(1000);
  EXPECT_EQ(core_->TakeActions().cancels.size(), 1u);
  core_->OnGroupState(a_, {.credit_tokens = 3}, 1100);
  const SubmitAction late = TheSubmit();
  core_->OnDelta(a_, FinishOf(late.sequence, 0, EndReason::kStop), 1200);
  core_->OnGroupState(a_, {.credit_tokens = 3}, 1200);
  core_->TakeActions();
  MustSubmit(Of("late", "again"));
  core_->Tick(1'000'000);
  EXPECT_TRUE(core_->TakeActions().cancels.empty());
  EXPECT_EQ(core_->counters().preemptions, 1);
}

TEST_F(RouterCoreTest, APromptGoesWhereItsTenantsPrefixIs) {
  const std::vector<TokenId> prompt(12, 7);
  for (const GroupId group : {a_, b_}) {
    core_->OnGroupUp(group, {.fingerprint = "f", .context_tokens = 100, .block_tokens = 4});
    core_->OnGroupState(group, {.credit_tokens = 1000}, now_);
  }
  core_->OnCacheNews(b_, {.reset = true, .stored = PrefixLinks(CacheSalt("t"), prompt, 4)});
  MustSubmit(Of("t", "1", 12));
  const SubmitAction submit = TheSubmit();
  EXPECT_EQ(submit.group, b_);
  EXPECT_EQ(submit.cache_salt, CacheSalt("t"));
  EXPECT_EQ(core_->counters().prefix_tokens, 11);
  MustSubmit(Of("other", "2", 12));  // has no part in it
  EXPECT_EQ(TheSubmit().group, a_);
  RouterRequest scored = Of("t", "3", 12);
  scored.prompt_logprobs = true;  // computes every position
  MustSubmit(std::move(scored));
  EXPECT_EQ(core_->counters().prefix_tokens, 11);
  EXPECT_EQ(core_->TopTenants(1)[0].name, "t");
  EXPECT_EQ(core_->TopTenants(9)[1].prompt_tokens, 12);
}

TEST_F(RouterCoreTest, CachedPromptTokensAreNotCharged) {
  const std::vector<TokenId> prompt(12, 7);
  core_->OnGroupUp(a_, {.fingerprint = "f", .context_tokens = 100, .block_tokens = 4});
  core_->OnGroupState(a_, {.credit_tokens = 1000}, now_);
  core_->OnCacheNews(a_, {.reset = true, .stored = PrefixLinks(CacheSalt("t"), prompt, 4)});
  MustSubmit(Of("t", "1", 14));
  EXPECT_EQ(core_->TopTenants(1)[0].prompt_tokens, 2);
}

TEST_F(RouterCoreTest, ExpiredSequencesAreCountedByWhatTheyDid) {
  Up(a_, 3);
  for (const char* name : {"runs", "waits", "paused"}) {
    RouterRequest request = RequestOf(name);
    request.deadline = 500;
    const RequestId id = MustSubmit(std::move(request));
    if (std::string_view(name) == "paused") core_->Pause(id);
  }
  core_->Tick(500);
  const ExpiredCounts& expired = core_->counters().expired;
  EXPECT_EQ(expired.running, 1);
  EXPECT_EQ(expired.queued, 2);  // the paused one had never been placed
  EXPECT_EQ(expired.paused, 0);
}

}  // namespace
}  // namespace facet
