#include "router/core/router_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/prng.h"
#include "base/status.h"
#include "tests/core/router_core_fixture.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST_F(RouterCoreTest, SplitsARequestIntoSeededSequencesAndSpreadsThem) {
  Up(a_);
  Up(b_);
  RouterRequest request = RequestOf("r");
  request.prompts = {{{1, 2}, 5}, {{3}, 6}};
  request.n = 2;
  MustSubmit(std::move(request));
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 4u);
  int on_a = 0;
  for (int i = 0; i < 4; ++i) {
    const SubmitAction& submit = actions.submits[i];
    EXPECT_EQ(submit.seed, SequenceSeed(42, i / 2, i % 2));
    EXPECT_EQ(submit.tokens, i < 2 ? (std::vector<TokenId>{1, 2}) : (std::vector<TokenId>{3}));
    EXPECT_EQ(submit.max_tokens, i < 2 ? 5 : 6);
    on_a += submit.group == a_;
  }
  EXPECT_EQ(on_a, 2);
}

TEST_F(RouterCoreTest, PrefersTheGroupWithFewerSequencesOfAnyRouter) {
  core_->OnGroupUp(a_, {"f", 100});
  core_->OnGroupState(a_, {.running = 3, .waiting = 1, .credit_tokens = 1000}, now_);
  core_->OnGroupUp(b_, {"f", 100});
  core_->OnGroupState(b_, {.running = 1, .credit_tokens = 1000}, now_);
  MustSubmit(RequestOf("r"));
  EXPECT_EQ(TheSubmit().group, b_);
}

TEST_F(RouterCoreTest, SpendsCreditAndWaitsForMore) {
  Up(a_, 5);
  MustSubmit(RequestOf("1", 3));
  MustSubmit(RequestOf("2", 3));
  MustSubmit(RequestOf("3", 3));
  EXPECT_EQ(core_->TakeActions().submits.size(), 2u);  // the second one overdraws
  // A state from before the submits arrived changes nothing.
  core_->OnGroupState(a_, {.credit_tokens = 5, .submits_received = 0}, now_);
  EXPECT_TRUE(core_->TakeActions().submits.empty());
  core_->OnGroupState(a_, {.credit_tokens = 4, .submits_received = 1}, now_);
  EXPECT_EQ(core_->TakeActions().submits.size(), 1u);
  EXPECT_EQ(core_->stats().queued_requests, 0);
}

TEST_F(RouterCoreTest, RefusesALiveClientIdAndTakesItAgainAfterwards) {
  Up(a_);
  const RequestId id = MustSubmit(RequestOf("same"));
  const absl::Status again = core_->Submit(RequestOf("same"), now_).status();
  EXPECT_EQ(again.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(MessageOf(again), HasSubstr("same"));
  core_->Cancel(id, now_);
  EXPECT_TRUE(core_->Submit(RequestOf("same"), now_).ok());
}

TEST_F(RouterCoreTest, AFullQueueRefuses) {
  Reset({.queue = {.requests_max = 2}});
  MustSubmit(RequestOf("1"));
  MustSubmit(RequestOf("2"));
  EXPECT_TRUE(absl::IsResourceExhausted(core_->Submit(RequestOf("3"), now_).status()));
  EXPECT_EQ(core_->stats().requests, 2);
}

TEST_F(RouterCoreTest, DropsDuplicatesAndDeliversInOrder) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  const SequenceId sequence = TheSubmit().sequence;
  core_->OnDelta(a_, Tokens(sequence, 0, {10, 11}), now_);
  EXPECT_THAT(IdsOf(TheDelta()), ElementsAre(10, 11));
  core_->OnDelta(a_, Tokens(sequence, 1, {11, 12}), now_);
  const ChoiceDelta delta = TheDelta();
  EXPECT_EQ(delta.offset, 2);
  EXPECT_THAT(IdsOf(delta), ElementsAre(12));
  EXPECT_EQ(core_->counters().duplicate_tokens, 1);
}

TEST_F(RouterCoreTest, AGapMakesTheSequenceRunElsewhere) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  const SubmitAction first = TheSubmit();
  core_->OnDelta(a_, Tokens(first.sequence, 0, {10}), now_);
  core_->TakeActions();
  core_->OnDelta(a_, Tokens(first.sequence, 2, {12}), now_);
  const CoreActions actions = core_->TakeActions();
  EXPECT_TRUE(actions.deltas.empty());
  ASSERT_EQ(actions.cancels.size(), 1u);
  EXPECT_EQ(actions.cancels[0].sequence, first.sequence);
  ASSERT_EQ(actions.submits.size(), 1u);
  EXPECT_THAT(actions.submits[0].tokens, ElementsAre(7, 7, 7, 10));
  EXPECT_NE(actions.submits[0].sequence, first.sequence);
}

TEST_F(RouterCoreTest, DropsTokensBeyondMaxTokens) {
  Up(a_);
  MustSubmit(RequestOf("r", 3, 2));
  LeaderDelta delta = Tokens(TheSubmit().sequence, 0, {1, 2, 3});
  delta.finish = EndReason::kLength;
  core_->OnDelta(a_, delta, now_);
  EXPECT_THAT(IdsOf(TheDelta()), ElementsAre(1, 2));
}

TEST_F(RouterCoreTest, FinishCarriesTheLeadersTimesPlusTheQueue) {
  MustSubmit(RequestOf("r"));
  now_ = 70;
  Up(a_);
  LeaderDelta delta = FinishOf(TheSubmit().sequence, 0, EndReason::kLength);
  delta.cached_tokens = 2;
  delta.queue_us = 5;
  delta.prefill_us = 11;
  delta.decode_us = 13;
  core_->OnDelta(a_, delta, now_);
  const ChoiceDelta out = TheDelta();
  ASSERT_TRUE(out.end.has_value());
  EXPECT_EQ(out.end->queue_us, 75);
  EXPECT_EQ(out.end->prefill_us, 11);
  EXPECT_EQ(out.end->decode_us, 13);
  EXPECT_EQ(out.end->cached_tokens, 2);
  EXPECT_TRUE(out.end->request_done);
  EXPECT_EQ(core_->stats().requests, 0);
}

TEST_F(RouterCoreTest, ADeadGroupsSequencesGoOnInAnEqualGroup) {
  Up(a_);
  MustSubmit(RequestOf("r", 3, 4));
  const SubmitAction first = TheSubmit();
  core_->OnDelta(a_, Tokens(first.sequence, 0, {10, 11}), now_);
  core_->TakeActions();
  Up(b_);
  core_->OnGroupDown(a_, now_);
  const SubmitAction second = TheSubmit();
  EXPECT_EQ(second.group, b_);
  EXPECT_THAT(second.tokens, ElementsAre(7, 7, 7, 10, 11));
  EXPECT_EQ(second.prompt_length, 3);
  EXPECT_EQ(second.max_tokens, 4);
  EXPECT_EQ(second.seed, first.seed);
  LeaderDelta rest = Tokens(second.sequence, 2, {12, 13});
  rest.finish = EndReason::kLength;
  core_->OnDelta(b_, rest, now_);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.offset, 2);
  EXPECT_THAT(IdsOf(out), ElementsAre(12, 13));
  EXPECT_EQ(out.end->reason, EndReason::kLength);
}

TEST_F(RouterCoreTest, ADeadGroupsSequencesWaitForAnEqualGroup) {
  Up(a_);
  Up(b_, 1000, "other");
  MustSubmit(RequestOf("r"));
  const SubmitAction first = TheSubmit();
  ASSERT_EQ(first.group, a_);
  core_->OnDelta(a_, Tokens(first.sequence, 0, {10}), now_);
  core_->TakeActions();
  core_->OnGroupDown(a_, now_);
  EXPECT_TRUE(core_->TakeActions().submits.empty());
  EXPECT_EQ(core_->stats().interrupted_sequences, 1);
  now_ += 5 * kSecond;
  Up(a_);
  EXPECT_THAT(TheSubmit().tokens, ElementsAre(7, 7, 7, 10));
  EXPECT_EQ(core_->stats().interrupted_sequences, 0);
}

TEST_F(RouterCoreTest, ASequenceWithoutTokensMayMoveToAnyGroup) {
  Up(a_);
  Up(b_, 1000, "other");
  MustSubmit(RequestOf("r"));
  EXPECT_EQ(TheSubmit().group, a_);
  core_->OnGroupDown(a_, now_);
  EXPECT_EQ(TheSubmit().group, b_);
}

TEST_F(RouterCoreTest, AnInterruptedSequenceGivesUpWhenNoEqualGroupComes) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  core_->OnDelta(a_, Tokens(TheSubmit().sequence, 0, {10}), now_);
  core_->OnGroupDown(a_, now_);
  core_->TakeActions();
  EXPECT_EQ(core_->NextWake(), 30 * kSecond);
  core_->Tick(30 * kSecond - 1);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->Tick(30 * kSecond);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.end->reason, EndReason::kError);
  EXPECT_TRUE(absl::IsUnavailable(out.end->status));
  EXPECT_THAT(MessageOf(out.end->status), HasSubstr("after 1 output tokens"));
}

TEST_F(RouterCoreTest, AfterADeathAnotherGroupIsPreferred) {
  Up(a_);
  Up(b_);
  for (const char* name : {"1", "2", "3"}) MustSubmit(RequestOf(name));
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 3u);
  ASSERT_EQ(actions.submits[1].group, b_);
  // b gives its only sequence back and would be the least loaded.
  core_->OnDelta(b_, FinishOf(actions.submits[1].sequence, 0, EndReason::kCancelled), now_);
  EXPECT_EQ(TheSubmit().group, a_);
}

TEST_F(RouterCoreTest, TwoDeathsWithoutATokenBetweenEndTheSequence) {
  Up(a_);
  Up(b_);
  MustSubmit(RequestOf("r"));
  const SubmitAction first = TheSubmit();
  core_->OnDelta(a_, Tokens(first.sequence, 0, {10}), now_);
  core_->TakeActions();
  core_->OnGroupDown(a_, now_);
  const SubmitAction second = TheSubmit();
  core_->OnDelta(b_, Tokens(second.sequence, 1, {11}), now_);  // a new token forgives
  core_->TakeActions();
  core_->OnGroupDown(b_, now_);
  core_->TakeActions();
  Up(a_);
  core_->TakeActions();
  core_->OnGroupDown(a_, now_);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.end->reason, EndReason::kError);
  EXPECT_EQ(out.end->status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(core_->counters().poisoned, 1);
}

TEST_F(RouterCoreTest, GroupsThatDrainHaveNotFailed) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  SubmitAction submit = TheSubmit();
  for (int i = 0; i < 5; ++i) {
    LeaderDelta declined = FinishOf(submit.sequence, 0, EndReason::kError);
    declined.error = Unavailable("the leader is shutting down");
    core_->OnDelta(a_, declined, now_);
    submit = TheSubmit();
  }
  core_->OnDelta(a_, Tokens(submit.sequence, 0, {10}), now_);
  EXPECT_THAT(IdsOf(TheDelta()), ElementsAre(10));
  EXPECT_EQ(core_->counters().poisoned, 0);
}

TEST_F(RouterCoreTest, TheWaitForAnEqualGroupBeginsWhenTheLastOneHasGone) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  core_->OnDelta(a_, Tokens(TheSubmit().sequence, 0, {10}), now_);
  Up(b_, 0);  // equal, and busy
  core_->OnGroupDown(a_, now_);
  core_->TakeActions();
  EXPECT_EQ(core_->NextWake(), 30 * kSecond);
  now_ = 20 * kSecond;
  core_->OnGroupDown(b_, now_);
  EXPECT_EQ(core_->NextWake(), 50 * kSecond);
  core_->Tick(50 * kSecond - 1);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->Tick(50 * kSecond);
  EXPECT_TRUE(absl::IsUnavailable(TheDelta().end->status));
}

TEST_F(RouterCoreTest, StopWaitsForTheLeadersLastWord) {
  Up(a_);
  const RequestId id = MustSubmit(RequestOf("r"));
  const SequenceId sequence = TheSubmit().sequence;
  core_->OnDelta(a_, Tokens(sequence, 0, {10}), now_);
  core_->TakeActions();
  core_->Stop(id, 0, 0, now_);
  CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.cancels.size(), 1u);
  EXPECT_TRUE(actions.deltas.empty());
  core_->OnDelta(a_, Tokens(sequence, 1, {11}), now_);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  LeaderDelta last = FinishOf(sequence, 2, EndReason::kCancelled);
  last.cached_tokens = 3;
  core_->OnDelta(a_, last, now_);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.end->reason, EndReason::kStop);
  EXPECT_TRUE(out.end->status.ok());
  EXPECT_EQ(out.end->cached_tokens, 3);
  EXPECT_TRUE(out.tokens.empty());
}

TEST_F(RouterCoreTest, StopEndsWithoutTheLeader) {
  Up(a_);
  const RequestId first = MustSubmit(RequestOf("1"));
  const RequestId second = MustSubmit(RequestOf("2"));
  core_->TakeActions();
  core_->Stop(first, 0, 0, now_);
  core_->TakeActions();
  core_->Tick(core_->NextWake());
  EXPECT_EQ(TheDelta().end->reason, EndReason::kStop);
  core_->Stop(second, 0, 0, now_);
  core_->TakeActions();
  core_->OnGroupDown(a_, now_);
  EXPECT_EQ(TheDelta().end->reason, EndReason::kStop);
}

TEST_F(RouterCoreTest, ADeadlineEndsQueuedAndRunningSequences) {
  Up(a_, 3);
  RouterRequest request = RequestOf("r");
  request.n = 2;
  request.deadline = 500;
  MustSubmit(std::move(request));
  const SubmitAction running = TheSubmit();
  EXPECT_EQ(core_->NextWake(), 500);
  core_->Tick(499);
  EXPECT_TRUE(core_->TakeActions().deltas.empty());
  core_->Tick(500);
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.deltas.size(), 2u);
  for (const ChoiceDelta& delta : actions.deltas) {
    EXPECT_EQ(delta.end->reason, EndReason::kDeadline);
    EXPECT_TRUE(absl::IsDeadlineExceeded(delta.end->status));
  }
  ASSERT_EQ(actions.cancels.size(), 1u);
  EXPECT_EQ(actions.cancels[0].sequence, running.sequence);
  EXPECT_EQ(core_->stats().queued_tokens, 0);
  EXPECT_EQ(core_->NextWake(), kNever);
}

TEST_F(RouterCoreTest, ARequestThatComesTooLateReachesNoLeader) {
  Up(a_);
  RouterRequest request = RequestOf("r");
  now_ = 100;
  request.deadline = 100;
  EXPECT_TRUE(absl::IsDeadlineExceeded(core_->Submit(std::move(request), now_).status()));
  EXPECT_TRUE(core_->TakeActions().submits.empty());
}

TEST_F(RouterCoreTest, CancelEndsEveryChoiceAndTellsTheLeader) {
  Up(a_, 3);
  RouterRequest request = RequestOf("r");
  request.n = 3;
  const RequestId id = MustSubmit(std::move(request));
  core_->TakeActions();
  core_->Cancel(id, now_);
  const CoreActions actions = core_->TakeActions();
  EXPECT_EQ(actions.deltas.size(), 3u);
  EXPECT_EQ(actions.cancels.size(), 1u);
  EXPECT_TRUE(actions.deltas.back().end->request_done);
  EXPECT_FALSE(actions.deltas.front().end->request_done);
}

TEST_F(RouterCoreTest, WithoutAGroupRequestsWaitAndThenFail) {
  MustSubmit(RequestOf("waits"));
  core_->Tick(30 * kSecond);
  EXPECT_TRUE(absl::IsUnavailable(TheDelta().end->status));
  EXPECT_TRUE(absl::IsUnavailable(core_->Submit(RequestOf("late"), 31 * kSecond).status()));
  Up(a_);
  EXPECT_TRUE(core_->Submit(RequestOf("served"), 32 * kSecond).ok());
}

TEST_F(RouterCoreTest, APromptThatFitsNoGroupDoesNotBlockTheQueue) {
  Up(a_, 1000, "f", 10);
  MustSubmit(RequestOf("long", 10));
  MustSubmit(RequestOf("short", 9));
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.deltas.size(), 1u);
  EXPECT_TRUE(absl::IsInvalidArgument(actions.deltas[0].end->status));
  EXPECT_EQ(MessageOf(actions.deltas[0].end->status),
            "prompts[0]: 10 tokens do not fit the context of 10 tokens");
  ASSERT_EQ(actions.submits.size(), 1u);
  EXPECT_EQ(actions.submits[0].tokens.size(), 9u);
}

TEST_F(RouterCoreTest, ADrainingGroupKeepsWhatItHasAndGetsNothingNew) {
  Up(a_);
  MustSubmit(RequestOf("1"));
  const SequenceId sequence = TheSubmit().sequence;
  core_->OnGroupState(a_, {.credit_tokens = 1000, .draining = true}, now_);
  MustSubmit(RequestOf("2"));
  EXPECT_TRUE(core_->TakeActions().submits.empty());
  core_->OnDelta(a_, Tokens(sequence, 0, {1}), now_);
  EXPECT_THAT(IdsOf(TheDelta()), ElementsAre(1));
}

TEST_F(RouterCoreTest, PromptLogprobsSurviveAFailoverWithoutRepeats) {
  Up(a_);
  Up(b_);
  RouterRequest request = RequestOf("r", 5, 0);
  request.prompt_logprobs = true;
  request.n = 2;
  MustSubmit(std::move(request));
  CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 2u);
  EXPECT_TRUE(actions.submits[0].prompt_logprobs);
  EXPECT_FALSE(actions.submits[1].prompt_logprobs);  // once per prompt
  EXPECT_EQ(actions.submits[0].max_tokens, 1);
  const auto scored = [](SequenceId sequence, int from, int count) {
    LeaderDelta delta{.sequence = sequence, .prompt_offset = from};
    for (int i = 0; i < count; ++i)
      delta.prompt.push_back({.id = 7, .logprob = -1.0f * (from + i)});
    return delta;
  };
  core_->OnDelta(a_, scored(actions.submits[0].sequence, 1, 2), now_);
  EXPECT_EQ(TheDelta().prompt.size(), 2u);
  core_->OnGroupDown(a_, now_);
  const SubmitAction again = TheSubmit();
  EXPECT_TRUE(again.prompt_logprobs);
  LeaderDelta rest = scored(again.sequence, 1, 4);
  rest.tokens.push_back({.id = 9});  // nobody asked for output
  rest.finish = EndReason::kStop;
  core_->OnDelta(b_, rest, now_);
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.prompt_offset, 3);
  ASSERT_EQ(out.prompt.size(), 2u);
  EXPECT_EQ(out.prompt[0].logprob, -3.0f);
  EXPECT_TRUE(out.tokens.empty());
  EXPECT_EQ(out.end->reason, EndReason::kLength);
}

TEST_F(RouterCoreTest, APausedRequestHoldsNoGroupAndGoesOnWhereItWas) {
  Up(a_, 4);
  RouterRequest request = RequestOf("r", 3, 5);
  request.n = 3;
  const RequestId id = MustSubmit(std::move(request));
  CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 2u);  // the third waits for credit
  core_->OnDelta(a_, Tokens(actions.submits[0].sequence, 0, {10, 11}), now_);
  core_->TakeActions();
  core_->Pause(id);
  core_->Pause(id);
  EXPECT_EQ(core_->TakeActions().cancels.size(), 2u);
  core_->OnGroupState(a_, {.credit_tokens = 1000}, now_);
  EXPECT_TRUE(core_->TakeActions().submits.empty());
  EXPECT_EQ(core_->stats().queued_requests, 0);
  EXPECT_EQ(core_->stats().running_sequences, 0);
  core_->Tick(100 * kSecond);  // a pause may last
  core_->Resume(id, now_);
  actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 3u);
  EXPECT_THAT(actions.submits[0].tokens, ElementsAre(7, 7, 7, 10, 11));
  EXPECT_THAT(actions.submits[1].tokens, ElementsAre(7, 7, 7));
  EXPECT_EQ(core_->counters().pauses, 1);
}

TEST_F(RouterCoreTest, APausedRequestCanStopExpireAndBeCancelled) {
  Up(a_);
  RouterRequest late = RequestOf("late");
  late.deadline = 50;
  const RequestId ids[] = {MustSubmit(RequestOf("stop")), MustSubmit(RequestOf("cancel")),
                           MustSubmit(std::move(late))};
  for (const RequestId id : ids) core_->Pause(id);
  core_->TakeActions();
  core_->Stop(ids[0], 0, 0, now_);
  EXPECT_EQ(TheDelta().end->reason, EndReason::kStop);
  core_->Cancel(ids[1], now_);
  EXPECT_EQ(TheDelta().end->reason, EndReason::kCancelled);
  core_->Tick(50);
  EXPECT_EQ(TheDelta().end->reason, EndReason::kDeadline);
  for (const RequestId id : ids) core_->Resume(id, now_);
  EXPECT_EQ(core_->stats().requests, 0);
}

TEST_F(RouterCoreTest, AnUnaskedCancelOfTheLeaderMovesTheSequence) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  const SequenceId first = TheSubmit().sequence;
  core_->OnDelta(a_, FinishOf(first, 0, EndReason::kCancelled), now_);
  EXPECT_NE(TheSubmit().sequence, first);
}

TEST_F(RouterCoreTest, ALeadersErrorEndsTheChoiceWithItsStatus) {
  Up(a_);
  MustSubmit(RequestOf("r"));
  LeaderDelta delta = FinishOf(TheSubmit().sequence, 0, EndReason::kError);
  delta.error = Unimplemented("logits_digest: refused");
  core_->OnDelta(a_, delta, now_);
  EXPECT_EQ(TheDelta().end->status.code(), absl::StatusCode::kUnimplemented);
}

}  // namespace
}  // namespace facet
