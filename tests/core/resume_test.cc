// What a client's stream that broke off finds when it comes back.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "router/core/cache_salt.h"
#include "router/core/refusal.h"
#include "tests/core/router_core_fixture.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

RouterRequest Resumed(std::vector<ResumePoint> points, int n = 1) {
  RouterRequest request = RequestOf("r");
  request.n = n;
  request.resume = std::move(points);
  return request;
}

TEST_F(RouterCoreTest, AResumedChoiceGoesOnAfterItsTokens) {
  Up(a_, 1000, "other");
  MustSubmit(Resumed({{.tokens = {10, 11}, .fingerprint = "f"}}));
  EXPECT_TRUE(core_->TakeActions().submits.empty());  // no equal group yet
  EXPECT_EQ(core_->stats().interrupted_sequences, 1);
  Up(b_);
  const SubmitAction submit = TheSubmit();
  EXPECT_EQ(submit.group, b_);
  EXPECT_THAT(submit.tokens, ElementsAre(7, 7, 7, 10, 11));
  EXPECT_EQ(submit.prompt_length, 3);
  core_->OnDelta(b_, Tokens(submit.sequence, 2, {12}), now_);
  const ChoiceDelta delta = TheDelta();
  EXPECT_EQ(delta.offset, 2);
  EXPECT_THAT(IdsOf(delta), ElementsAre(12));
  EXPECT_EQ(delta.fingerprint, "f");
  EXPECT_FALSE(delta.migration_gap);  // this router has not seen the token before
}

TEST_F(RouterCoreTest, AResumedChoiceGivesUpWithoutAnEqualGroup) {
  Up(a_, 1000, "other");
  MustSubmit(Resumed({{.tokens = {10}, .fingerprint = "f"}}));
  core_->Tick(core_->NextWake());
  const ChoiceDelta out = TheDelta();
  EXPECT_TRUE(absl::IsUnavailable(out.end->status));
  EXPECT_TRUE(RetryAfter(out.end->status));
}

TEST_F(RouterCoreTest, FinishedChoicesAreNotSentAgain) {
  Up(a_);
  const RequestId id =
      MustSubmit(Resumed({{.choice_index = 1, .tokens = {1}, .fingerprint = "f", .finished = true}},
                         /*n=*/3));
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.submits.size(), 2u);
  EXPECT_TRUE(actions.deltas.empty());
  core_->OnDelta(a_, FinishOf(actions.submits[0].sequence, 0, EndReason::kStop), now_);
  EXPECT_FALSE(TheDelta().end->request_done);
  core_->OnDelta(a_, FinishOf(actions.submits[1].sequence, 0, EndReason::kStop), now_);
  const ChoiceDelta last = TheDelta();
  EXPECT_EQ(last.request, id);
  EXPECT_EQ(last.choice_index, 2);
  EXPECT_TRUE(last.end->request_done);
}

TEST_F(RouterCoreTest, ARequestWhoseChoicesAllFinishedIsDoneAtOnce) {
  const RequestId id = MustSubmit(Resumed({{.finished = true}}));
  const CoreActions actions = core_->TakeActions();
  EXPECT_THAT(actions.done, ElementsAre(id));
  EXPECT_TRUE(actions.deltas.empty());
  EXPECT_EQ(core_->stats().requests, 0);
}

TEST_F(RouterCoreTest, AResumedChoiceWithAllItsTokensEnds) {
  RouterRequest request = Resumed({{.tokens = {1, 2}, .fingerprint = "f"}});
  request.prompts[0].max_tokens = 2;
  MustSubmit(std::move(request));
  const ChoiceDelta out = TheDelta();
  EXPECT_EQ(out.offset, 2);
  EXPECT_EQ(out.end->reason, EndReason::kLength);
  EXPECT_EQ(core_->stats().requests, 0);
}

TEST_F(RouterCoreTest, ResumePointsThatContradictAreRefused) {
  const auto refusal = [&](std::vector<ResumePoint> points) {
    const absl::Status status = core_->Submit(Resumed(std::move(points)), now_).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return MessageOf(status);
  };
  EXPECT_THAT(refusal({{.prompt_index = 1}}), HasSubstr("prompt_index 1"));
  EXPECT_THAT(refusal({{.choice_index = 1}}), HasSubstr("choice_index 1"));
  EXPECT_THAT(refusal({{}, {}}), HasSubstr("twice"));
  EXPECT_THAT(refusal({{.tokens = {1}}}), HasSubstr("no fingerprint"));
  EXPECT_THAT(refusal({{.tokens = std::vector<TokenId>(9, 1), .fingerprint = "f"}}),
              HasSubstr("9 tokens"));
  EXPECT_EQ(core_->stats().requests, 0);
}

TEST_F(RouterCoreTest, ATakeoverReplacesTheSameTenantsRequest) {
  Up(a_);
  const RequestId old = MustSubmit(RequestOf("same"));
  core_->OnDelta(a_, Tokens(TheSubmit().sequence, 0, {10}), now_);
  core_->TakeActions();
  RouterRequest again = RequestOf("same");
  again.takes_over = true;
  again.resume = {{.tokens = {10}, .fingerprint = "f"}};
  RouterRequest foreign = again;
  foreign.tenant = "another";
  EXPECT_EQ(core_->Submit(std::move(foreign), now_).status().code(),
            absl::StatusCode::kAlreadyExists);
  const RequestId id = MustSubmit(std::move(again));
  const CoreActions actions = core_->TakeActions();
  ASSERT_EQ(actions.deltas.size(), 1u);
  EXPECT_EQ(actions.deltas[0].request, old);
  EXPECT_EQ(actions.deltas[0].end->reason, EndReason::kCancelled);
  EXPECT_EQ(actions.cancels.size(), 1u);
  ASSERT_EQ(actions.submits.size(), 1u);
  EXPECT_THAT(actions.submits[0].tokens, ElementsAre(7, 7, 7, 10));
  EXPECT_EQ(core_->counters().takeovers, 1);
  core_->Cancel(id, now_);
  EXPECT_TRUE(core_->Submit(RequestOf("same"), now_).ok());
}

TEST_F(RouterCoreTest, FingerprintAndGapComeWithTheTokensTheyBelongTo) {
  Up(a_);
  Up(b_);
  MustSubmit(RequestOf("r"));
  const SequenceId first = TheSubmit().sequence;
  core_->OnDelta(a_, Tokens(first, 0, {10}), now_);
  EXPECT_EQ(TheDelta().fingerprint, "f");
  now_ += 1000;
  core_->OnDelta(a_, Tokens(first, 1, {11}), now_);
  ChoiceDelta delta = TheDelta();
  EXPECT_EQ(delta.fingerprint, "");
  EXPECT_FALSE(delta.migration_gap);
  now_ += 200;
  core_->OnGroupDown(a_, now_);
  const SequenceId second = TheSubmit().sequence;
  now_ += 300;
  core_->OnDelta(b_, Tokens(second, 2, {12}), now_);
  delta = TheDelta();
  EXPECT_EQ(delta.migration_gap, 500);
  EXPECT_EQ(delta.fingerprint, "");
  core_->OnDelta(b_, Tokens(second, 3, {13}), now_);
  EXPECT_FALSE(TheDelta().migration_gap);
  EXPECT_EQ(core_->counters().migrations, 1);
}

TEST_F(RouterCoreTest, ScoredPromptsAreNotScoredAgain) {
  Up(a_);
  RouterRequest request = RequestOf("r");
  request.prompt_logprobs = true;
  request.prompts[0].scored = true;
  MustSubmit(std::move(request));
  EXPECT_FALSE(TheSubmit().prompt_logprobs);
}

TEST_F(RouterCoreTest, EpochChangesAreCounted) {
  for (const uint64_t epoch : {1, 1, 2}) {
    core_->OnGroupUp(a_, {.fingerprint = "f", .context_tokens = 100, .epoch = epoch});
    core_->OnGroupDown(a_, now_);
  }
  EXPECT_EQ(core_->counters().epoch_changes, 1);
}

TEST(CacheSalt, TellsTenantsApartAndStaysTheSame) {
  EXPECT_EQ(CacheSalt("a"), CacheSalt("a"));
  EXPECT_NE(CacheSalt("a"), CacheSalt("b"));
  EXPECT_NE(CacheSalt(""), CacheSalt(std::string_view("\0", 1)));
  // Routers of different versions must agree.
  EXPECT_EQ(CacheSalt(""), Mix64(0));
  EXPECT_EQ(CacheSalt("a"), Mix64(Mix64(1) ^ 'a'));
}

TEST(Refusal, NotesWhenToComeAgain) {
  const absl::Status status = WithRetryAfter(ResourceExhausted("full"), 1500);
  EXPECT_EQ(RetryAfter(status), 1500);
  EXPECT_EQ(MessageOf(status), "full");
  EXPECT_FALSE(RetryAfter(ResourceExhausted("full")));
  EXPECT_FALSE(RetryAfter(WithRetryAfter(absl::OkStatus(), 1)));
}

}  // namespace
}  // namespace facet
