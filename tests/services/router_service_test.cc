// A router between a client and fake leaders: streams, texts, failures.

#include <gmock/gmock.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <sstream>

#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RouterService : public RouterFixture {};

const Answer::Choice& Only(const Answer& answer) {
  EXPECT_EQ(answer.choices.size(), 1u);
  return answer.choices.begin()->second;
}

TEST_F(RouterService, StreamsTokensAndText) {
  FakeLeader& leader = AddLeader(Saying({kSpaceA, kSpace, kSpaceB, kA}));
  Start();
  Answer answer;
  v1::GenerateRequest request = TextRequest();
  request.set_request_id("mine");
  const grpc::Status status = Generate(request, &answer);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(answer.request_id, "mine");
  const Answer::Choice& choice = Only(answer);
  EXPECT_EQ(choice.text, " a  ba");
  EXPECT_THAT(choice.ids, ElementsAre(kSpaceA, kSpace, kSpaceB, kA, kEos));
  ASSERT_TRUE(choice.finish);
  EXPECT_EQ(choice.finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(choice.finish->stop_token_id(), kEos);
  EXPECT_FALSE(choice.finish->has_stop_string());
  EXPECT_EQ(choice.finish->usage().prompt_tokens(), 3);
  EXPECT_EQ(choice.finish->usage().completion_tokens(), 5);
  EXPECT_EQ(choice.finish->usage().cached_tokens(), 1);
  EXPECT_EQ(choice.finish->seed(), 7u);
  EXPECT_GE(choice.finish->timings().queue_us(), 10);
  EXPECT_EQ(choice.finish->timings().prefill_us(), 20);
  EXPECT_EQ(choice.finish->timings().decode_us(), 30);
  const v1::Submit submit = leader.submits().at(0);
  EXPECT_THAT(submit.tokens(), ElementsAre(kBos, kSpaceA, kSpaceB));
  EXPECT_EQ(submit.prompt_length(), 3);
  EXPECT_EQ(submit.max_tokens(), kContext - 3);
  EXPECT_EQ(submit.seed(), SequenceSeed(7, 0, 0));
  EXPECT_GT(submit.remaining_us(), 0);
}

TEST_F(RouterService, PassesOnEveryParameter) {
  FakeLeader& leader = AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(2);
  request.set_logprobs(3);
  request.set_ignore_eos(true);
  request.add_stop_token_ids(77);
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_sampling()->set_top_k(40);
  (*request.mutable_sampling()->mutable_logit_bias())[4] = -std::numeric_limits<float>::infinity();
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  const v1::Submit submit = leader.submits().at(0);
  EXPECT_EQ(submit.sampling().SerializeAsString(), request.sampling().SerializeAsString());
  EXPECT_THAT(submit.stop_token_ids(), ElementsAre(77));
  EXPECT_EQ(submit.max_tokens(), 2);
  const Answer::Choice& choice = Only(answer);
  EXPECT_EQ(choice.finish->reason(), v1::FINISH_REASON_LENGTH);
  ASSERT_EQ(choice.tokens.size(), 2u);
  EXPECT_EQ(choice.tokens[0].logprob(), -0.25f);
  EXPECT_EQ(choice.tokens[0].top_size(), 3);
}

TEST_F(RouterService, MergesSeveralPromptsAndChoices) {
  AddLeader(Letters());
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.add_prompts()->mutable_tokens()->add_ids(kA);
  v1::ChatMessage& message = *request.add_prompts()->mutable_chat()->add_messages();
  message.set_role("user");
  message.set_content("abc");
  request.set_n(4);
  request.set_max_tokens(30);
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  ASSERT_EQ(answer.choices.size(), 12u);
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, index.first, index.second), 30));
    ASSERT_TRUE(choice.finish);
    EXPECT_EQ(choice.finish->reason(), v1::FINISH_REASON_LENGTH);
  }
  EXPECT_FALSE(leaders_[0]->submits().empty());
  EXPECT_FALSE(leaders_[1]->submits().empty());

  grpc::ClientContext context;
  v1::CompleteResponse whole;
  ASSERT_TRUE(stub_->Complete(&context, request, &whole).ok());
  ASSERT_EQ(whole.choices_size(), 12);
  for (int i = 0; i < 12; ++i) {
    const v1::Choice& choice = whole.choices(i);
    EXPECT_EQ(choice.prompt_index(), i / 4);
    EXPECT_EQ(choice.choice_index(), i % 4);
    EXPECT_EQ(choice.text(), LettersOf(SequenceSeed(7, i / 4, i % 4), 30));
    EXPECT_EQ(choice.tokens_size(), 30);
    EXPECT_EQ(choice.finish().usage().completion_tokens(), 30);
  }
  EXPECT_FALSE(whole.request_id().empty());
}

TEST_F(RouterService, DrawsASeedAndReturnsIt) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.clear_seed();
  request.set_max_tokens(20);
  Answer drawn, repeated;
  ASSERT_TRUE(Generate(request, &drawn).ok());
  const uint64_t seed = Only(drawn).finish->seed();
  EXPECT_EQ(Only(drawn).text, LettersOf(SequenceSeed(seed, 0, 0), 20));
  request.set_seed(seed);
  ASSERT_TRUE(Generate(request, &repeated).ok());
  EXPECT_EQ(Only(repeated).text, Only(drawn).text);
}

TEST_F(RouterService, StopStringsEndTheTextAcrossTokens) {
  // "a" "EN" "b" "EN" "D" "a" ...: END is complete with the fifth token.
  FakeLeader& leader = AddLeader(Saying({kA, kEn, kB, kEn, kD, kA, kA, kA, kA, kA}));
  Start();
  v1::GenerateRequest request = TextRequest();
  request.add_stop("nothing");
  request.add_stop("END");
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  const Answer::Choice& choice = Only(answer);
  EXPECT_EQ(choice.text, "aENb");
  EXPECT_THAT(choice.ids, ElementsAre(kA, kEn, kB, kEn, kD));
  EXPECT_EQ(choice.finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(choice.finish->stop_string(), "END");
  EXPECT_FALSE(choice.finish->has_stop_token_id());
  EXPECT_EQ(choice.finish->usage().completion_tokens(), 5);
  EXPECT_TRUE(leader.WaitUntilIdle());
}

TEST_F(RouterService, AStopStringCancelsTheSequenceAtTheLeader) {
  FakeLeader& leader = AddLeader(Saying(std::vector<TokenId>(4000, kA)));
  leader.HoldAt(3);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.add_stop("aaa");
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  EXPECT_EQ(Only(answer).text, "");
  EXPECT_EQ(Only(answer).finish->stop_string(), "aaa");
  EXPECT_EQ(Only(answer).finish->usage().cached_tokens(), 1);  // the leader's last word came
  EXPECT_EQ(leader.cancels(), 1);
}

TEST_F(RouterService, TextHeldForAStopStringIsReleasedAtTheEnd) {
  AddLeader(Saying({kA, kEn}));
  Start();
  v1::GenerateRequest request = TextRequest();
  request.add_stop("END");
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  EXPECT_EQ(Only(answer).text, "aEN");
  EXPECT_EQ(Only(answer).finish->stop_token_id(), kEos);
}

TEST_F(RouterService, CharactersAreWholeHoweverTheirBytesCome) {
  // U+1F600 in four byte tokens, then a byte that never becomes a character.
  AddLeader(Saying(
      {ByteToken(0xF0), ByteToken(0x9F), ByteToken(0x98), ByteToken(0x80), kA, ByteToken(0xC3)}));
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, TextRequest());
  v1::GenerateResponse response;
  Answer answer;
  while (reader->Read(&response)) answer.Add(response);  // parsing checks every string
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text,
            "\xF0\x9F\x98\x80"
            "a\xEF\xBF\xBD");
  EXPECT_EQ(Only(answer).ids.size(), 7u);
}

TEST_F(RouterService, EchoReturnsThePromptFirst) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_echo(true);
  request.set_n(2);
  request.set_max_tokens(3);
  Answer plain;
  ASSERT_TRUE(Generate(request, &plain).ok());
  ASSERT_EQ(plain.echo.size(), 1u);
  EXPECT_EQ(plain.echo[0].text(), " a b");
  ASSERT_EQ(plain.echo[0].tokens_size(), 3);
  EXPECT_EQ(plain.echo[0].tokens(1).id(), kSpaceA);
  EXPECT_EQ(plain.echo[0].tokens(1).logprob(), 0);

  request.set_logprobs(0);
  request.set_max_tokens(0);
  Answer scored;
  ASSERT_TRUE(Generate(request, &scored).ok());
  ASSERT_EQ(scored.echo.size(), 1u);
  EXPECT_EQ(scored.echo[0].tokens(1).logprob(), -0.5f);
  EXPECT_EQ(scored.echo[0].tokens(2).logprob(), -1.0f);
  ASSERT_EQ(scored.choices.size(), 2u);
  for (const auto& [index, choice] : scored.choices) {
    EXPECT_TRUE(choice.ids.empty());
    EXPECT_EQ(choice.text, "");
    EXPECT_EQ(choice.finish->reason(), v1::FINISH_REASON_LENGTH);
  }
}

TEST_F(RouterService, AVanishedClientCancelsItsSequences) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(5);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(3);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() == 3; }));
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterService, ADeadlineEndsTheStreamWithItsUsage) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(4);
  options_.inference.deadline_margin_us = 1'000'000;  // a busy machine must not fail this
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(1500));
  Answer answer;
  const grpc::Status status = Generate(TextRequest(), &answer, context);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  ASSERT_TRUE(Only(answer).finish);
  EXPECT_EQ(Only(answer).finish->reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(Only(answer).finish->usage().completion_tokens(), 4);
  EXPECT_EQ(Only(answer).finish->usage().prompt_tokens(), 3);
  EXPECT_TRUE(leader.WaitUntilIdle());
}

TEST_F(RouterService, RequestsWithoutADeadlineHaveTheRouters) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(1);
  options_.inference.request_max_us = 200'000;
  Start();
  Answer answer;
  const grpc::Status status = Generate(TextRequest(), &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(status.error_message(), "the request's deadline passed");
  EXPECT_EQ(Only(answer).finish->usage().completion_tokens(), 1);
}

TEST_F(RouterService, ARequestIdIsUniqueWhileItLives) {
  FakeLeader& leader = AddLeader(Saying({kA, kB}));
  leader.HoldAt(1);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_request_id("same");
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  const grpc::Status second = StatusOf(request);
  EXPECT_EQ(second.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(second.error_message(), "request_id: `same` is in use");
  leader.Release();
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  Answer answer;
  EXPECT_TRUE(Generate(request, &answer).ok());
}

TEST_F(RouterService, AFullQueueRefusesWithARetryDelay) {
  credit_tokens_ = 0;
  AddLeader(Letters());
  options_.dispatcher.core.queue.requests_max = 1;
  Start();
  grpc::ClientContext waiting, refused;
  v1::GenerateRequest request = TextRequest();
  const auto reader = stub_->Generate(&waiting, request);
  ASSERT_TRUE(WaitForStatus(
      [](const v1::GetStatusResponse& status) { return status.queued_requests() == 1; }));
  Answer answer;
  const grpc::Status status = Generate(request, &answer, refused);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("the queue is full"));
  EXPECT_EQ(refused.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
  waiting.TryCancel();
  reader->Finish();
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterService, AStreamGoesOnInAnotherGroupWhenItsLeaderDies) {
  AddLeader(Letters());
  AddLeader(Letters());
  for (const auto& leader : leaders_) leader->HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(6);
  request.set_max_tokens(40);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  const auto tokens_so_far = [&answer] {
    int tokens = 0;
    for (const auto& [index, choice] : answer.choices) tokens += std::ssize(choice.ids);
    return tokens;
  };
  while (tokens_so_far() < 60 && reader->Read(&response)) answer.Add(response);
  leaders_[0]->Kill();
  ASSERT_TRUE(leaders_[1]->WaitForSubmits(6));
  leaders_[1]->Release();
  while (reader->Read(&response)) answer.Add(response);
  const grpc::Status status = reader->Finish();
  ASSERT_TRUE(status.ok()) << status.error_message();
  ASSERT_EQ(answer.choices.size(), 6u);
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, 0, index.second), 40));
    EXPECT_EQ(choice.ids.size(), 40u);
  }
  const v1::Submit moved = leaders_[1]->submits().back();
  EXPECT_EQ(moved.prompt_length(), 3);
  EXPECT_EQ(moved.tokens_size(), 13);
  EXPECT_EQ(moved.max_tokens(), 40);
}

TEST_F(RouterService, AStreamWaitsForItsOnlyGroupToComeBack) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(30);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  while ((answer.choices.empty() || Only(answer).ids.size() < 10) && reader->Read(&response)) {
    answer.Add(response);
  }
  leader.Kill();
  leader.Release();
  leader.Start();
  while (reader->Read(&response)) answer.Add(response);
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(7, 0, 0), 30));
}

TEST_F(RouterService, TokensThatALeaderLeavesOutAreComputedAgain) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(10);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(30);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  while ((answer.choices.empty() || Only(answer).ids.size() < 10) && reader->Read(&response)) {
    answer.Add(response);
  }
  leader.SkipTokens(3);
  leader.Release();
  while (reader->Read(&response)) answer.Add(response);
  ASSERT_TRUE(reader->Finish().ok());
  EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(7, 0, 0), 30));
  EXPECT_EQ(leader.submits().size(), 2u);
}

TEST_F(RouterService, ALeaderThatFallsSilentIsGivenUp) {
  AddLeader(Letters());
  AddLeader(Letters());
  for (const auto& leader : leaders_) leader->HoldAt(2);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  request.set_max_tokens(20);
  Answer answer;
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  answer.Add(response);
  leaders_[0]->Mute();
  for (const auto& leader : leaders_) leader->Release();
  while (reader->Read(&response)) answer.Add(response);
  EXPECT_TRUE(reader->Finish().ok());
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, 0, index.second), 20));
  }
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(0).state() == "down: silent for 2 s";
  }));
}

TEST_F(RouterService, ALeaderThatDoesNotSayItsModelIsNotUsed) {
  info_.set_context_tokens(0);
  const FakeLeader stranger({.address = LeaderAddress(0), .model = info_, .script = Letters()});
  options_.dispatcher.leaders.leaders.push_back(LeaderAddress(0));
  Start();
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(0).state() == "down: did not begin with its model";
  }));
}

TEST_F(RouterService, ARequestThatKillsGroupsEndsWithInternal) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(0);
  Start();
  Answer answer;
  grpc::Status status;
  std::thread client([&] { status = Generate(TextRequest(), &answer); });
  for (size_t deaths = 1; deaths <= 2; ++deaths) {
    EXPECT_TRUE(leader.WaitForSubmits(deaths));
    leader.Kill();
    leader.Start();
  }
  client.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_EQ(status.error_message(), "2 groups in a row failed while they ran this sequence");
  EXPECT_EQ(Only(answer).finish->reason(), v1::FINISH_REASON_ERROR);
}

TEST_F(RouterService, WithoutAGroupARequestIsUnavailable) {
  options_.dispatcher.leaders.leaders = {LeaderAddress(9)};
  options_.dispatcher.core.group_wait_us = 50'000;
  Start();
  Answer answer;
  EXPECT_EQ(Generate(TextRequest(), &answer).error_code(), grpc::StatusCode::UNAVAILABLE);
  const v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.groups_size(), 1);
  EXPECT_FALSE(status.groups(0).ready());
  EXPECT_THAT(status.groups(0).state(), HasSubstr("down: "));
}

TEST_F(RouterService, ALeaderOfAnotherModelIsNotUsed) {
  AddLeader(Letters());
  info_.set_digest(info_.digest() + 1);
  const FakeLeader stranger({.address = LeaderAddress(1), .model = info_, .script = Letters()});
  options_.dispatcher.leaders.leaders.push_back(LeaderAddress(1));
  Start();
  EXPECT_TRUE(WaitForStatus([](const v1::GetStatusResponse& status) {
    return status.groups(1).state().find("serves another model") != std::string::npos;
  }));
  Answer answer;
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_max_tokens(2);
  EXPECT_TRUE(Generate(request, &answer).ok());
  EXPECT_TRUE(stranger.submits().empty());
}

TEST_F(RouterService, AnOptionThatWorkersRefuseIsUnimplemented) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_logits_digest(true);
  Answer answer;
  const grpc::Status status = Generate(request, &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("logits_digest"));
}

TEST_F(RouterService, ASlowReaderPausesItsRequestAndMissesNothing) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.stream.pending_bytes_max = 16 << 10;
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_logprobs(20);  // about 1 MB per choice
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() == 4; }));
  EXPECT_TRUE(leader.WaitUntilIdle());
  EXPECT_EQ(Status().running_requests(), 1);
  v1::GenerateResponse response;
  Answer answer;
  while (reader->Read(&response)) answer.Add(response);
  EXPECT_TRUE(reader->Finish().ok());
  ASSERT_EQ(answer.choices.size(), 4u);
  for (const auto& [index, choice] : answer.choices) {
    EXPECT_EQ(choice.text, LettersOf(SequenceSeed(7, 0, index.second), kContext - 3));
    EXPECT_TRUE(choice.finish);
  }
}

TEST_F(RouterService, AClientThatNeverReadsIsDropped) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.stream.pending_bytes_max = 16 << 10;
  options_.inference.stream.stall_max_us = 100'000;
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() == 4; }));
  EXPECT_TRUE(WaitUntilQuiet());
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(RouterService, AnAnswerTooBigForOneMessageEndsComplete) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.complete_bytes_max = 100'000;
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_logprobs(20);
  grpc::ClientContext context;
  v1::CompleteResponse response;
  const grpc::Status status = stub_->Complete(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(status.error_message(), "the answer is too big for one message; use Generate");
  EXPECT_TRUE(leader.WaitUntilIdle());
}

TEST_F(RouterService, ManyClientsAtOnceGetTheirOwnAnswers) {
  AddLeader(Letters());
  AddLeader(Letters());
  Start();
  std::atomic<int> right = 0;
  std::vector<std::thread> clients;
  for (int client = 0; client < 20; ++client) {
    clients.emplace_back([this, client, &right] {
      for (int i = 0; i < 10; ++i) {
        v1::GenerateRequest request = TextRequest();
        request.set_seed(100 * client + i);
        request.set_n(1 + i % 3);
        request.set_max_tokens(1 + 7 * i);
        Answer answer;
        if (!Generate(request, &answer).ok()) continue;
        bool all = std::ssize(answer.choices) == request.n();
        for (const auto& [index, choice] : answer.choices) {
          all = all && choice.finish &&
                choice.text == LettersOf(SequenceSeed(request.seed(), 0, index.second), 1 + 7 * i);
        }
        right += all;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(right, 200);
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterService, DrainingLetsRequestsEndAndRefusesNewOnes) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(2);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(10);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse response;
  Answer answer;
  ASSERT_TRUE(reader->Read(&response));
  answer.Add(response);
  std::thread drain([this] { router_->Drain(std::chrono::seconds(30)); });
  for (;;) {  // until the drain has begun
    grpc::ClientContext other;
    v1::GenerateRequest probe = TextRequest();
    probe.set_max_tokens(1);
    v1::CompleteResponse completion;
    const grpc::Status status = stub_->Complete(&other, probe, &completion);
    if (status.ok()) continue;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
    EXPECT_EQ(status.error_message(), "the router is shutting down");
    break;
  }
  leader.Release();
  while (reader->Read(&response)) answer.Add(response);
  const grpc::Status status = reader->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(Only(answer).ids.size(), 10u);
  drain.join();
}

TEST_F(RouterService, TokenizesAndDetokenizes) {
  AddLeader(Letters());
  Start();
  grpc::ClientContext first, second, third;
  v1::TokenizeRequest tokenize;
  tokenize.mutable_prompt()->set_text(" aa\xC3\xA9");
  v1::TokenizeResponse tokens;
  ASSERT_TRUE(stub_->Tokenize(&first, tokenize, &tokens).ok());
  EXPECT_THAT(tokens.ids(), ElementsAre(kBos, kSpaceA, kA, ByteToken(0xC3), ByteToken(0xA9)));
  EXPECT_THAT(tokens.pieces(), ElementsAre("", " a", "a", "\xC3", "\xA9"));
  v1::DetokenizeRequest detokenize;
  detokenize.mutable_ids()->CopyFrom(tokens.ids());
  v1::DetokenizeResponse text;
  ASSERT_TRUE(stub_->Detokenize(&second, detokenize, &text).ok());
  EXPECT_EQ(text.text(), " aa\xC3\xA9");
}

TEST_F(RouterService, DescribesModelsAndGroups) {
  info_.set_parameters(1234);
  AddLeader(Letters());
  Start();
  const auto models = v1::Models::NewStub(channel_);
  grpc::ClientContext first, second, third;
  v1::ListModelsResponse list;
  ASSERT_TRUE(models->List(&first, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  EXPECT_EQ(list.models(0).name(), "tiny");
  EXPECT_EQ(list.models(0).parameters(), 1234);
  v1::GetModelRequest get;
  get.set_name("tiny");
  v1::ModelInfo info;
  ASSERT_TRUE(models->Get(&second, get, &info).ok());
  EXPECT_EQ(info.fingerprint(), "f16-1");
  get.set_name("huge");
  EXPECT_EQ(models->Get(&third, get, &info).error_code(), grpc::StatusCode::NOT_FOUND);
  const v1::GetStatusResponse status = Status();
  ASSERT_EQ(status.groups_size(), 1);
  EXPECT_EQ(status.groups(0).state(), "ready");
  EXPECT_EQ(status.groups(0).ranks(), 2);
  EXPECT_EQ(status.groups(0).device(), "fake");
}

TEST_F(RouterService, CountsWhatItDoes) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(5);
  Answer answer;
  ASSERT_TRUE(Generate(request, &answer).ok());
  request.set_n(0);
  StatusOf(request);
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, registry_.Collect());
  EXPECT_THAT(text.str(), HasSubstr("facet_router_requests_total{outcome=\"ok\"} 1"));
  EXPECT_THAT(text.str(), HasSubstr("facet_router_requests_total{outcome=\"invalid_argument\"} 1"));
  EXPECT_THAT(text.str(), HasSubstr("facet_router_output_tokens_total 5"));
  EXPECT_THAT(text.str(), HasSubstr("facet_router_prompt_tokens_total 3"));
  EXPECT_THAT(text.str(), HasSubstr("facet_router_time_to_first_token_seconds_count 1"));
  EXPECT_THAT(text.str(), HasSubstr("facet_router_time_per_output_token_seconds_count 1"));
}

}  // namespace
}  // namespace facet::testing
