// Streams that break off at one router and go on at another: the client shows what an undisturbed
// stream shows, wherever the break was.

#include <gmock/gmock.h>

#include <atomic>
#include <functional>
#include <limits>
#include <thread>

#include "client/answer.h"
#include "client/connection.h"
#include "client/resuming_stream.h"
#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::HasSubstr;
using ClientAnswer = facet::Answer;

class RouterResume : public RouterFixture {
 protected:
  // A second router before the same leaders.
  void StartBoth() {
    Start();
    options_.server.listen = "unix:" + folder_.File("router2.sock");
    second_ = StartRouter();
    second_stub_ = v1::Inference::NewStub(
        grpc::CreateChannel(second_->address(), grpc::InsecureChannelCredentials()));
  }
  ~RouterResume() override {
    second_stub_.reset();
    second_.reset();
  }

  static ClientAnswer Empty(const v1::GenerateRequest& request) {
    return ClientAnswer(request.prompts_size(), std::max(1, request.n()));
  }

  // The undisturbed stream. The leader waits for the client after each token of its choices, so
  // that nothing merges.
  std::vector<v1::GenerateResponse> Record(v1::GenerateRequest request) {
    int position = 1;
    leaders_[0]->HoldAt(position);
    request.set_request_id("recorded");
    grpc::ClientContext context;
    const auto reader = stub_->Generate(&context, request);
    std::vector<v1::GenerateResponse> messages;
    ClientAnswer answer = Empty(request);
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      messages.push_back(message);
      EXPECT_TRUE(answer.Add(message, ClientClock::now()).ok());
      while (!answer.complete() && LeastTokens(answer) >= position) {
        leaders_[0]->HoldAt(++position);
      }
    }
    const grpc::Status status = reader->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    leaders_[0]->Release();
    return messages;
  }
  // Of the choices that go on.
  static int LeastTokens(const ClientAnswer& answer) {
    int least = std::numeric_limits<int>::max();
    for (int i = 0; i < answer.choices(); ++i) {
      const ChoiceState& choice = answer.choice(i);
      if (!choice.finish) least = std::min(least, static_cast<int>(choice.tokens.size()));
    }
    return least;
  }

  // Runs what is left after `known` at the second router.
  grpc::Status Continue(v1::GenerateRequest request, ClientAnswer& known) {
    request.set_request_id(known.request_id());
    if (known.start()) request.set_seed(known.start()->seed());
    if (known.start()) *request.mutable_resume() = ResumeOf(known);
    grpc::ClientContext context;
    const auto reader = second_stub_->Generate(&context, request);
    v1::GenerateResponse message;
    bool first = true;
    while (reader->Read(&message)) {
      EXPECT_EQ(message.has_start(), first);
      first = false;
      const absl::Status sound = known.Add(message, ClientClock::now());
      EXPECT_TRUE(sound.ok()) << sound;
    }
    return reader->Finish();
  }

  static void ExpectEqual(const ClientAnswer& answer, const ClientAnswer& undisturbed) {
    ASSERT_TRUE(answer.complete());
    for (int i = 0; i < undisturbed.choices(); ++i) {
      const ChoiceState& got = answer.choice(i);
      const ChoiceState& want = undisturbed.choice(i);
      EXPECT_EQ(got.text, want.text);
      EXPECT_EQ(got.fingerprint, want.fingerprint);
      ASSERT_EQ(got.tokens.size(), want.tokens.size());
      for (size_t token = 0; token < want.tokens.size(); ++token) {
        EXPECT_EQ(got.tokens[token].SerializeAsString(), want.tokens[token].SerializeAsString());
      }
      EXPECT_EQ(got.finish->reason(), want.finish->reason());
      EXPECT_EQ(got.finish->has_stop_string(), want.finish->has_stop_string());
      EXPECT_EQ(got.finish->stop_string(), want.finish->stop_string());
      EXPECT_EQ(got.finish->has_stop_token_id(), want.finish->has_stop_token_id());
      EXPECT_EQ(got.finish->stop_token_id(), want.finish->stop_token_id());
      EXPECT_EQ(got.finish->seed(), want.finish->seed());
      EXPECT_EQ(got.finish->usage().prompt_tokens(), want.finish->usage().prompt_tokens());
      EXPECT_EQ(got.finish->usage().completion_tokens(), want.finish->usage().completion_tokens());
    }
    ASSERT_EQ(answer.echo().size(), undisturbed.echo().size());
    for (size_t i = 0; i < undisturbed.echo().size(); ++i) {
      EXPECT_EQ(answer.echo()[i].SerializeAsString(), undisturbed.echo()[i].SerializeAsString());
    }
  }

  // Cuts the stream of `request` before every message, and also where a message's tokens came but
  // its ends did not.
  void CutEverywhere(const v1::GenerateRequest& request, int tokens_max) {
    StartBoth();
    const std::vector<v1::GenerateResponse> messages = Record(request);
    EXPECT_GE(std::ssize(messages), 1 + tokens_max);
    ClientAnswer undisturbed = Empty(request);
    for (const auto& message : messages) {
      ASSERT_TRUE(undisturbed.Add(message, ClientClock::now()).ok());
    }
    for (size_t cut = 0; cut < messages.size(); ++cut) {
      for (const bool without_ends : {false, true}) {
        SCOPED_TRACE(fmt::format("cut {}{}", cut, without_ends ? " without ends" : ""));
        // Before the first message the seed is open.
        if (cut == 0 && !without_ends && !request.has_seed()) continue;
        ClientAnswer answer = Empty(request);
        for (size_t i = 0; i < cut; ++i) {
          ASSERT_TRUE(answer.Add(messages[i], ClientClock::now()).ok());
        }
        if (without_ends) {
          ASSERT_TRUE(answer.Add(WithoutEnds(messages[cut]), ClientClock::now()).ok());
        }
        const grpc::Status status = Continue(request, answer);
        ASSERT_TRUE(status.ok()) << status.error_message();
        ExpectEqual(answer, undisturbed);
        if (HasFatalFailure() || HasNonfatalFailure()) return;
      }
    }
    EXPECT_TRUE(WaitUntilQuiet());
  }

  // Only what tokens had made certain of the text comes before an end.
  static v1::GenerateResponse WithoutEnds(v1::GenerateResponse message) {
    for (v1::Delta& delta : *message.mutable_deltas()) {
      if (!delta.has_finish()) continue;
      delta.clear_finish();
      delta.clear_text();
    }
    return message;
  }

  std::unique_ptr<RouterServer> second_;
  std::unique_ptr<v1::Inference::Stub> second_stub_;
};

TEST_F(RouterResume, LogProbabilitiesAndSeveralChoices) {
  AddLeader(Letters());
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  request.set_logprobs(2);
  request.set_max_tokens(9);
  CutEverywhere(request, 9);
}

TEST_F(RouterResume, StopStringsAcrossTokens) {
  AddLeader(Saying({kA, kEn, kB, kEn, kD, kA, kA, kA}));
  v1::GenerateRequest request = TextRequest();
  request.set_n(2);
  request.add_stop("xyz");
  request.add_stop("END");
  CutEverywhere(request, 5);
}

TEST_F(RouterResume, TextThatWasHeldForAStopString) {
  AddLeader(Saying({kA, kEn, kA, kEn}));
  v1::GenerateRequest request = TextRequest();
  request.add_stop("END");
  CutEverywhere(request, 5);
}

TEST_F(RouterResume, CharactersOfSeveralTokens) {
  AddLeader(Saying({ByteToken(0xF0), ByteToken(0x9F), ByteToken(0x98), ByteToken(0x80), kA,
                    ByteToken(0xC3), ByteToken(0xA9), ByteToken(0xC3), kB, ByteToken(0xE2)}));
  v1::GenerateRequest request = TextRequest();
  CutEverywhere(request, 11);
}

TEST_F(RouterResume, AnEndByLengthInsideACharacter) {
  AddLeader(Saying({kA, ByteToken(0xF0), ByteToken(0x9F), ByteToken(0x98), ByteToken(0x80)}));
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(3);
  CutEverywhere(request, 3);
}

TEST_F(RouterResume, AStopTokenAsTheLastThatIsAllowed) {
  AddLeader(Saying({kA, kB}));
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(3);
  CutEverywhere(request, 3);
}

TEST_F(RouterResume, EchoOfSeveralPrompts) {
  AddLeader(Letters());
  v1::GenerateRequest request = TextRequest();
  request.add_prompts()->mutable_tokens()->add_ids(kA);
  request.mutable_prompts(1)->mutable_tokens()->add_ids(kB);
  request.set_echo(true);
  request.set_logprobs(1);
  request.set_n(2);
  request.set_max_tokens(4);
  CutEverywhere(request, 4);
}

TEST_F(RouterResume, WithoutASeedTheRoutersOwnIsKept) {
  AddLeader(Letters());
  v1::GenerateRequest request = TextRequest();
  request.clear_seed();
  request.set_max_tokens(3);
  CutEverywhere(request, 3);
}

TEST_F(RouterResume, TextThatTheClientLacksComesFirst) {
  AddLeader(Letters());
  StartBoth();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(6);
  const std::string text = LettersOf(SequenceSeed(7, 0, 0), 6);
  for (int known = 0; known <= 4; ++known) {
    v1::ChoiceResume& choice = *request.mutable_resume()->add_choices();
    for (int i = 0; i < 4; ++i) choice.add_tokens(LetterAt(SequenceSeed(7, 0, 0), i));
    choice.set_text_bytes(known);
    choice.set_fingerprint("f16-1");
    grpc::ClientContext context;
    const auto reader = second_stub_->Generate(&context, request);
    v1::GenerateResponse message;
    std::string got;
    int offset = 4;
    while (reader->Read(&message)) {
      for (const v1::Delta& delta : message.deltas()) {
        EXPECT_EQ(delta.offset(), offset);
        offset += delta.tokens_size();
        got += delta.text();
      }
    }
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(got, text.substr(known));
    request.clear_resume();
  }
  EXPECT_EQ(leaders_[0]->submits().back().tokens_size(), 3 + 4);
  EXPECT_EQ(leaders_[0]->submits().back().prompt_length(), 3);
}

TEST_F(RouterResume, AStreamWhoseChoicesAllHadEndedEndsAtOnce) {
  FakeLeader& leader = AddLeader(Letters());
  StartBoth();
  v1::GenerateRequest request = TextRequest();
  request.mutable_resume()->add_choices()->set_finished(true);
  Answer answer;
  EXPECT_TRUE(Generate(request, &answer).ok());
  EXPECT_EQ(answer.messages, 1);
  EXPECT_TRUE(answer.choices.empty());
  EXPECT_TRUE(leader.submits().empty());
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterResume, TheSameRouterReplacesTheStreamThatItStillRuns) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(3);
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_request_id("same");
  request.set_max_tokens(6);
  grpc::ClientContext context;
  const auto broken = stub_->Generate(&context, request);
  ClientAnswer answer = Empty(request);
  v1::GenerateResponse message;
  while (answer.tokens() < 3 && broken->Read(&message)) {
    ASSERT_TRUE(answer.Add(message, ClientClock::now()).ok());
  }
  *request.mutable_resume() = ResumeOf(answer);
  grpc::ClientContext again;
  const auto reader = stub_->Generate(&again, request);
  ASSERT_TRUE(reader->Read(&message));
  ASSERT_TRUE(answer.Add(message, ClientClock::now()).ok());
  leader.Release();
  while (reader->Read(&message)) ASSERT_TRUE(answer.Add(message, ClientClock::now()).ok());
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(answer.choice(0).text, LettersOf(SequenceSeed(7, 0, 0), 6));
  while (broken->Read(&message)) {
  }
  EXPECT_EQ(broken->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterResume, AClientOutlivesItsRouter) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(5);
  StartBoth();
  v1::GenerateRequest request = TextRequest();
  request.set_n(3);
  request.set_max_tokens(12);
  const Connection connection({.endpoints = {router_->address(), second_->address()}});
  ClientAnswer answer = Empty(request);
  std::atomic<int> tokens = 0;
  absl::Status status;
  std::thread client([&] {
    status = ResumingStream(connection, request, answer).Run([&] { tokens = answer.tokens(); });
  });
  while (tokens < 15) std::this_thread::yield();
  router_->Drain(std::chrono::milliseconds(0));
  leader.Release();
  client.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(answer.resumptions(), 1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(answer.choice(i).text, LettersOf(SequenceSeed(7, 0, i), 12));
  }
}

TEST_F(RouterResume, AStreamWhoseGroupIsLostIsResumedElsewhere) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(4);
  options_.dispatcher.core.group_wait_us = 50'000;
  StartBoth();
  v1::GenerateRequest request = TextRequest();
  request.set_max_tokens(8);
  // Holds the last letter back: it must not be let go with a line that is cut.
  request.add_stop(LettersOf(SequenceSeed(7, 0, 0), 4).substr(3) + "zzz");
  ClientAnswer answer = Empty(request);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  v1::GenerateResponse message;
  while (answer.tokens() < 4 && reader->Read(&message)) {
    ASSERT_TRUE(answer.Add(message, ClientClock::now()).ok());
  }
  leader.Kill();
  while (reader->Read(&message)) ASSERT_TRUE(answer.Add(message, ClientClock::now()).ok());
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(answer.choice(0).finish) << "its end is for another router to tell";
  EXPECT_EQ(answer.choice(0).text, LettersOf(SequenceSeed(7, 0, 0), 3));
  leader.Release();
  leader.Start();
  grpc::Status status;
  do {  // until the second router has the leader again
    status = Continue(request, answer);
  } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(answer.choice(0).text, LettersOf(SequenceSeed(7, 0, 0), 8));
}

// What a resume may not say.
class RouterResumeRefusals : public RouterFixture {
 protected:
  std::string Refusal(const std::function<void(v1::GenerateRequest&)>& change) {
    v1::GenerateRequest request = TextRequest();
    request.set_max_tokens(8);
    request.set_n(2);
    request.add_stop("bb");
    v1::ChoiceResume& choice = *request.mutable_resume()->add_choices();
    choice.add_tokens(kA);
    choice.add_tokens(ByteToken(0xC3));
    choice.add_tokens(ByteToken(0xA9));
    choice.set_text_bytes(1);
    choice.set_fingerprint("f16-1");
    change(request);
    const grpc::Status status = StatusOf(request);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    return status.error_message();
  }
  static v1::ChoiceResume& Choice(v1::GenerateRequest& request) {
    return *request.mutable_resume()->mutable_choices(0);
  }
};

TEST_F(RouterResumeRefusals, NameTheField) {
  AddLeader(Letters());
  Start();
  EXPECT_EQ(Refusal([](auto& r) { r.clear_seed(); }), "seed: is needed with resume");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_prompt_index(1); }),
            "resume.choices[0].prompt_index: 1 is outside [0, 1)");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_choice_index(-1); }),
            "resume.choices[0].choice_index: -1 is outside [0, 2)");
  EXPECT_EQ(Refusal([](auto& r) { *r.mutable_resume()->add_choices() = Choice(r); }),
            "resume.choices[1]: prompt 0 choice 0 is there already");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_tokens(1, kVocabularySize); }),
            fmt::format("resume.choices[0].tokens[1]: {0} is outside the vocabulary of {0}",
                        kVocabularySize));
  EXPECT_EQ(Refusal([](auto& r) { r.set_max_tokens(2); }),
            "resume.choices[0].tokens: 3 tokens, but the request allows 2");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_text_bytes(-1); }),
            "resume.choices[0].text_bytes: -1 is below 0");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_text_bytes(4); }),
            "resume.choices[0].text_bytes: 4, but its tokens make 3 bytes of text");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_text_bytes(2); }),
            "resume.choices[0].text_bytes: 2 lies inside a character");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).clear_fingerprint(); }),
            "resume.choices[0].fingerprint: is needed with tokens");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_fingerprint(std::string(300, 'x')); }),
            "resume.choices[0].fingerprint: 300 bytes, at most 256 are allowed");
  EXPECT_EQ(Refusal([](auto& r) { Choice(r).set_tokens(1, kEos); }),
            "resume.choices[0].tokens[2]: the token before it ended the choice");
  EXPECT_EQ(Refusal([](auto& r) {
              Choice(r).set_tokens(0, kB);
              Choice(r).set_tokens(1, kB);
            }),
            "resume.choices[0].tokens[2]: the token before it ended the choice");
  EXPECT_EQ(Refusal([](auto& r) { r.mutable_resume()->add_echoed_prompts(0); }),
            "resume.echoed_prompts: echo is not asked for");
  EXPECT_EQ(Refusal([](auto& r) {
              r.set_echo(true);
              r.mutable_resume()->add_echoed_prompts(1);
            }),
            "resume.echoed_prompts[0]: 1 is outside [0, 1)");
  EXPECT_EQ(Refusal([](auto& r) { r.set_echo(true); }),
            "resume.choices[0]: its prompt's echo comes first, but is not in echoed_prompts");
}

TEST_F(RouterResumeRefusals, ACallWithoutAStreamHasNothingToResume) {
  AddLeader(Letters());
  Start();
  v1::GenerateRequest request = TextRequest();
  request.mutable_resume();
  grpc::ClientContext context;
  v1::CompleteResponse response;
  EXPECT_EQ(stub_->Complete(&context, request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace facet::testing
