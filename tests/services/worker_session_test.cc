// Sessions between routers and a leader.

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "base/prefix_hash.h"

#include "tests/services/worker_fixture.h"

namespace facet::testing {
namespace {

TEST_F(WorkerService, FirstMessageSaysWhoTheLeaderIs) {
  StartAlone();
  Router router(address());
  const v1::LeaderState state = router.First();
  EXPECT_EQ(state.model().name(), "fake-model");
  EXPECT_EQ(state.model().architecture(), "fake");
  EXPECT_EQ(state.model().context_tokens(), 1024);
  EXPECT_EQ(state.model().vocabulary_size(), 1000);
  EXPECT_EQ(state.model().fingerprint(), "fake-1");
  EXPECT_EQ(state.ranks(), 1);
  EXPECT_EQ(state.device(), "fake");
  EXPECT_EQ(state.kv_tokens_total(), 4096);
  EXPECT_EQ(state.credit_tokens(), 64);
  EXPECT_TRUE(state.has_submits_received());
  EXPECT_FALSE(state.draining());
}

TEST_F(WorkerService, SequencesComeBackWholeAndInOrder) {
  StartAlone();
  Router router(address());
  router.First();
  const std::vector<v1::Submit> submits = {Submit(1, 5, 20), Submit(2, 200, 7), Submit(9, 1, 40)};
  router.Send(submits);
  router.ReadUntilFinished({1, 2, 9});
  for (const v1::Submit& submit : submits) {
    const Answer& answer = router.answers[submit.sequence()];
    EXPECT_EQ(answer.tokens, Expected(submit, rank_.engine)) << submit.sequence();
    EXPECT_EQ(answer.last.finish(), v1::FINISH_REASON_LENGTH);
  }
  EXPECT_EQ(router.state.submits_received(), 3);
  EXPECT_EQ(router.state.prompt_tokens_done(), 206);
  EXPECT_EQ(router.state.output_tokens_done(), 67);
  EXPECT_EQ(router.state.kv_tokens_used(), 0);
}

// Each step begins before the one before it is read: a stop token and a cancelled sequence leave a
// step under way that computes them once more, and their slots change hands.
TEST_F(WorkerService, StepsThatOverlapGiveTheSameTokens) {
  std::atomic<int> overlapped = 0;
  rank_.overlapped = &overlapped;
  rank_.engine.sequences_max = 2;
  StartAlone();
  Router router(address());
  router.First();
  std::vector<v1::Submit> submits = {Submit(1, 5, 20), Submit(2, 70, 30), Submit(3, 1, 40),
                                     Submit(4, 9, 200)};
  const std::vector<int32_t> all = Expected(submits[1], rank_.engine);
  submits[1].add_stop_token_ids(all[6]);
  router.Send(submits);
  while (router.answers[4].tokens.size() < 3) ASSERT_TRUE(router.Read());
  router.Send({Submit(5, 3, 12)}, {4});
  router.ReadUntilFinished({1, 2, 3, 4, 5});
  submits.push_back(Submit(5, 3, 12));
  for (const v1::Submit& submit : submits) {
    const std::vector<int32_t> expected = Expected(submit, rank_.engine);
    const Answer& answer = router.answers[submit.sequence()];
    ASSERT_LE(answer.tokens.size(), expected.size());
    EXPECT_TRUE(std::equal(answer.tokens.begin(), answer.tokens.end(), expected.begin()));
    if (submit.sequence() != 2 && submit.sequence() != 4) {
      EXPECT_EQ(answer.tokens.size(), expected.size());
    }
  }
  EXPECT_EQ(router.answers[2].last.finish(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(router.answers[2].tokens.back(), all[6]);
  EXPECT_EQ(router.state.kv_tokens_used(), 0);
  EXPECT_TRUE(Stop().ok());  // before `overlapped` goes
  EXPECT_GT(overlapped, 20);
}

TEST_F(WorkerService, ScoresAndDigestsReachTheRouter) {
  options_.allow_logits_digest = true;
  StartAlone();
  Router router(address());
  router.First();
  v1::Submit submit = Submit(1, 100, 3);
  submit.set_prompt_logprobs(true);
  submit.set_logprobs(2);
  submit.set_logits_digest(true);
  router.Send({submit});
  router.ReadUntilFinished({1});
  const Answer& answer = router.answers[1];
  const std::vector<int32_t> prompt(submit.tokens().begin() + 1, submit.tokens().end());
  EXPECT_EQ(answer.prompt, prompt);
  std::vector<TokenId> all(submit.tokens().begin(), submit.tokens().end());
  all.insert(all.end(), answer.tokens.begin(), answer.tokens.end());
  EXPECT_EQ(answer.last.logits_sha256(), FakeExecutor::DigestOf(all, 102, rank_.engine));
  ASSERT_GT(answer.last.tokens_size(), 0);
  for (const auto& token : answer.last.tokens()) EXPECT_EQ(token.top_size(), 2);
}

TEST_F(WorkerService, StateComesDuringALongStep) {
  gate_.Allow(1);
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 100)});
  while (router.answers[1].tokens.empty()) ASSERT_TRUE(router.Read());
  for (int i = 0; i < 3; ++i) {  // the next step waits at the gate
    router.state.Clear();
    ASSERT_TRUE(router.Read());
    EXPECT_EQ(router.state.running(), 1);
  }
  EXPECT_EQ(router.answers[1].tokens.size(), 1u);
}

TEST_F(WorkerService, NewsOfTheCacheReachTheRouterAndReuseIsTold) {
  StartAlone();
  Router router(address());
  EXPECT_EQ(router.First().block_tokens(), 16);
  v1::Submit submit = Submit(1, 40, 3);
  submit.set_cache_salt(99);
  router.Send({submit});
  router.ReadUntilFinished({1});
  const std::vector<TokenId> prompt(submit.tokens().begin(), submit.tokens().end());
  const std::vector<uint64_t> links = PrefixLinks(99, prompt, 16);
  while (!std::all_of(links.begin(), links.end(),
                      [&](uint64_t link) { return router.cached.count(link) == 1; })) {
    ASSERT_TRUE(router.Read());
  }
  submit.set_sequence(2);
  router.Send({submit});
  router.ReadUntilFinished({2});
  EXPECT_EQ(router.answers[2].last.cached_tokens(), 32);
  EXPECT_EQ(router.answers[2].tokens, router.answers[1].tokens);
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_cached_prompt_tokens_total 32\n"));
}

TEST_F(WorkerService, StepsAreProfiledWhileARouterAsks) {
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 3)});
  router.ReadUntilFinished({1});
  EXPECT_FALSE(router.state.has_profile());
  router.AskForProfile(3'600'000'000);
  router.Send({Submit(2, 5, 3)});
  router.ReadUntilFinished({2});
  const v1::StepProfile profile = router.state.profile();
  EXPECT_GE(profile.steps(), 2);
  EXPECT_EQ(profile.rows(), 2 * profile.steps());
  const auto& operations = profile.operations();
  const auto head =
      std::find_if(operations.begin(), operations.end(),
                   [](const v1::OperationTotals& each) { return each.name() == "head"; });
  ASSERT_NE(head, operations.end());
  EXPECT_EQ(head->calls(), 3 * profile.steps());
  EXPECT_EQ(head->bytes(), 1e6 * static_cast<double>(profile.steps()));
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_operation_seconds_total{op=\"head\"}"));
  router.AskForProfile(0);
  router.Send({Submit(3, 5, 3)});
  router.ReadUntilFinished({3});
  EXPECT_FALSE(router.state.has_profile());
}

TEST_F(WorkerService, AProfileEndsByItself) {
  StartAlone();
  Router router(address());
  router.First();
  router.AskForProfile(1);
  uint64_t sequence = 0;
  do {
    router.Send({Submit(++sequence, 5, 1)});
    router.ReadUntilFinished({sequence});
  } while (router.state.has_profile());
}

TEST_F(WorkerService, CancelEndsASequence) {
  gate_.Allow(3);
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 500)});
  while (router.answers[1].tokens.size() < 3) ASSERT_TRUE(router.Read());
  router.Send({}, {1});
  StepUntilFinished(&router, 1);
  EXPECT_EQ(router.answers[1].last.finish(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(router.state.kv_tokens_used(), 0);
}

TEST_F(WorkerService, EndOfASessionFreesItsSequences) {
  gate_.Allow(2);
  StartAlone();
  {
    Router router(address());
    router.First();
    router.Send({Submit(1, 50, 900), Submit(2, 50, 900)});
    while (router.answers[2].tokens.empty()) ASSERT_TRUE(router.Read());
    EXPECT_GT(router.state.kv_tokens_used(), 0);
  }
  // Let go sooner, they might finish before the leader hears of it.
  while (MetricsText().find("facet_worker_router_streams 0\n") == std::string::npos) {
    std::this_thread::yield();
  }
  gate_.Open();
  Router next(address());
  next.First();
  do {
    ASSERT_TRUE(next.Read());
  } while (next.state.running() > 0);
  EXPECT_EQ(next.state.kv_tokens_used(), 0);
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_sequences_total{finish=\"cancelled\"} 2"));
}

TEST_F(WorkerService, DeadlineEndsASequence) {
  gate_.Allow(1);
  StartAlone();
  Router router(address());
  router.First();
  v1::Submit submit = Submit(1, 5, 900);
  submit.set_remaining_us(30'000);
  router.Send({submit});
  Answer& answer = router.answers[1];
  while (answer.tokens.empty() && answer.last.finish() == v1::FINISH_REASON_UNSPECIFIED) {
    ASSERT_TRUE(router.Read());
  }
  const TimeUs deadline = SteadyNow() + submit.remaining_us();  // it has come: its time runs
  while (SteadyNow() < deadline) std::this_thread::yield();     // while a step waits at the gate
  gate_.Open();
  router.ReadUntilFinished({1});
  EXPECT_EQ(router.answers[1].last.finish(), v1::FINISH_REASON_DEADLINE);
  EXPECT_LT(router.answers[1].tokens.size(), 900u);
}

TEST_F(WorkerService, ExpiredWorkIsNotComputed) {
  StartAlone();
  Router router(address());
  router.First();
  v1::Submit submit = Submit(1, 5, 900);
  submit.set_remaining_us(-5);
  router.Send({submit});
  router.ReadUntilFinished({1});
  EXPECT_EQ(router.answers[1].last.finish(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(router.state.prompt_tokens_done(), 0);
}

TEST_F(WorkerService, BadSubmitsAreAnsweredOneByOne) {
  StartAlone();
  Router router(address());
  router.First();
  std::vector<v1::Submit> submits;
  submits.push_back(Submit(1, 0, 5));
  submits.push_back(Submit(2, 3, 5));
  submits.back().set_tokens(1, 1000);
  submits.push_back(Submit(3, 1024, 5));
  submits.push_back(Submit(4, 3, 5));
  submits.back().mutable_sampling()->set_temperature(-1);
  submits.push_back(Submit(5, 3, 5));
  submits.back().set_logits_digest(true);
  submits.push_back(Submit(6, 3, 5));  // sound
  router.Send(submits);
  router.ReadUntilFinished({1, 2, 3, 4, 5, 6});
  const auto expect_error = [&](uint64_t sequence, grpc::StatusCode code, const char* text) {
    const v1::SequenceDelta& last = router.answers[sequence].last;
    EXPECT_EQ(last.finish(), v1::FINISH_REASON_ERROR);
    EXPECT_EQ(last.error_code(), code);
    EXPECT_THAT(last.error(), HasSubstr(text));
  };
  expect_error(1, grpc::INVALID_ARGUMENT, "prompt is empty");
  expect_error(2, grpc::INVALID_ARGUMENT, "tokens[1]: 1000");
  expect_error(3, grpc::INVALID_ARGUMENT, "too long");
  expect_error(4, grpc::INVALID_ARGUMENT, "temperature");
  expect_error(5, grpc::UNIMPLEMENTED, "logits_digest");
  EXPECT_EQ(router.answers[6].tokens, Expected(submits[5], rank_.engine));
  EXPECT_EQ(router.state.submits_received(), 6);
}

TEST_F(WorkerService, FullQueueIsAnsweredAndGivesNoCredit) {
  rank_.engine.sequences_max = 1;
  rank_.engine.waiting_max = 2;
  gate_.Allow(1);
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 900)});
  while (router.answers[1].tokens.empty()) ASSERT_TRUE(router.Read());
  router.Send({Submit(2, 5, 1), Submit(3, 5, 1), Submit(4, 5, 1)});
  StepUntilFinished(&router, 4);
  EXPECT_EQ(router.answers[4].last.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_EQ(router.state.waiting(), 2);
  EXPECT_EQ(router.state.credit_tokens(), 0);
  gate_.Open();
  router.ReadUntilFinished({1, 2, 3});
}

TEST_F(WorkerService, NumberInUseEndsTheSession) {
  gate_.Allow(1);
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 100), Submit(1, 5, 100)});
  gate_.Open();
  const grpc::Status status = router.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("sequence: 1 is still running"));
}

TEST_F(WorkerService, RoutersDoNotSeeEachOther) {
  StartAlone();
  Router a(address()), b(address());
  a.First();
  b.First();
  const v1::Submit for_a = Submit(1, 5, 50);
  v1::Submit for_b = Submit(1, 30, 50);
  for_b.set_seed(7);
  a.Send({for_a});
  b.Send({for_b});
  a.ReadUntilFinished({1});
  b.ReadUntilFinished({1});
  EXPECT_EQ(a.answers[1].tokens, Expected(for_a, rank_.engine));
  EXPECT_EQ(b.answers[1].tokens, Expected(for_b, rank_.engine));
  EXPECT_EQ(a.answers.size(), 1u);
}

TEST_F(WorkerService, TooManyRoutersAreRefused) {
  options_.routers_max = 1;
  StartAlone();
  Router first(address());
  first.First();
  Router second(address());
  const grpc::Status status = second.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("at most 1"));
}

TEST_F(WorkerService, RouterThatDoesNotReadIsDroppedAndOthersGoOn) {
  options_.session.unread_bytes_max = 256 << 10;
  rank_.engine.blocks = {2048, 0};
  rank_.engine.context_tokens = 8192;
  StartAlone();
  Router silent(address());
  std::vector<v1::Submit> submits;
  for (uint64_t sequence = 0; sequence < 7; ++sequence) {
    submits.push_back(Submit(sequence, 5, 4000));  // 64 alternatives a token: 25 MB in all
    submits.back().set_logprobs(64);
  }
  silent.Send(submits);
  Router router(address());
  router.First();
  const v1::Submit submit = Submit(1, 5, 30);
  router.Send({submit});
  router.ReadUntilFinished({1});
  EXPECT_EQ(router.answers[1].tokens, Expected(submit, rank_.engine));
  do {
    ASSERT_TRUE(router.Read());
  } while (router.state.running() > 0);
  EXPECT_EQ(router.state.kv_tokens_used(), 0);
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_sequences_total{finish=\"cancelled\"} 7"));
  EXPECT_EQ(silent.AwaitEnd().error_code(), grpc::CANCELLED);
}

}  // namespace
}  // namespace facet::testing
