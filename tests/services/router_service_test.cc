// A router between a client and a fake leader: what streams and answers hold.

#include <gmock/gmock.h>
#include <prometheus/text_serializer.h>

#include <sstream>

#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class RouterService : public RouterFixture {};

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

TEST_F(RouterService, AsksLeadersForProfilesAndTellsThem) {
  FakeLeader& leader = AddLeader(Letters());
  v1::StepProfile profile;
  profile.set_steps(7);
  profile.add_operations()->set_name("head");
  leader.SetProfile(profile);
  Start();
  EXPECT_FALSE(Status().groups(0).has_profile());
  const auto stub = v1::Status::NewStub(channel_);
  v1::ProfileRequest request;
  v1::ProfileResponse response;
  grpc::ClientContext first, second, third;
  request.set_duration_us(5'000'000);
  ASSERT_TRUE(stub->Profile(&first, request, &response).ok());
  ASSERT_TRUE(WaitForStatus(
      [](const v1::GetStatusResponse& status) { return status.groups(0).profile().steps() == 7; }));
  EXPECT_EQ(leader.profile_us(), 5'000'000);
  EXPECT_EQ(Status().groups(0).profile().operations(0).name(), "head");
  request.set_duration_us(-1);
  EXPECT_EQ(stub->Profile(&second, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.set_duration_us(int64_t{1} << 62);
  EXPECT_EQ(stub->Profile(&third, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
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
