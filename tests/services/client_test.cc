// What the commands show and send.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <sstream>
#include <string>
#include <thread>

#include "base/status.h"
#include "client/answer.h"
#include "client/chat.h"
#include "client/json.h"
#include "client/models.h"
#include "client/status.h"
#include "tests/services/client_fixture.h"

namespace facet::testing {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using ::testing::StartsWith;

TEST_F(ClientTest, TheAnswerGoesToStdoutAndTheRestToStderr) {
  router_.Answer({Message({MakeDelta(0, 0, 0, {5}, "Hel")}),
                  Message({Finished(MakeDelta(0, 0, 1, {6, 7}, "lo."))})});
  EXPECT_TRUE(Generate().ok());
  EXPECT_EQ(out_.str(), "Hello.\n");
  EXPECT_THAT(err_.str(), AllOf(StartsWith("3 tokens, "), HasSubstr("first after "),
                                HasSubstr("(prompt 3 tokens, 1 cached); stop; seed 7\n")));
}

TEST_F(ClientTest, SeveralAnswersAreShownInOrderWhateverTheOrderTheyCameIn) {
  router_.Answer({Message({MakeDelta(0, 1, 0, {1}, "B1"), MakeDelta(0, 0, 0, {2}, "A1")}),
                  Message({Finished(MakeDelta(0, 1, 1, {3}, "B2"))}),
                  Message({Finished(MakeDelta(0, 0, 1, {4}, "A2"))}),
                  Message({Finished(MakeDelta(1, 1, 0, {5}, "D"))}),
                  Message({Finished(MakeDelta(1, 0, 0, {6}, "C"))})});
  GenerateOptions options;
  options.request.set_n(2);
  options.request.add_prompts()->set_text("x");
  options.request.add_prompts()->set_text("y");
  EXPECT_TRUE(Generate(options).ok());
  EXPECT_EQ(out_.str(), "A1A2\nB1B2\nC\nD\n");
  EXPECT_THAT(err_.str(),
              AllOf(HasSubstr("== prompt 1, choice 1\n"), HasSubstr("prompt 6 tokens")));
}

TEST_F(ClientTest, WhatARouterMayNotSendIsAnError) {
  const auto outcome = [this](std::vector<v1::GenerateResponse> messages) {
    router_.Answer(std::move(messages));
    return Generate().ToString();
  };
  EXPECT_THAT(outcome({Message({MakeDelta(0, 0, 0, {5}, "a")}),
                       Message({Finished(MakeDelta(0, 0, 2, {6}, "b"))})}),
              HasSubstr("offset 2 where 1 tokens had come"));
  EXPECT_THAT(outcome({Message({MakeDelta(0, 0, 0, {5}, "a"), MakeDelta(0, 0, 0, {5}, "a")})}),
              HasSubstr("offset 0 where 1 tokens had come"));
  EXPECT_THAT(outcome({Message({MakeDelta(0, 1, 0, {5}, "a")})}),
              HasSubstr("prompt 0 choice 1 of 1 prompts and 1 choices"));
  EXPECT_THAT(outcome({Message({MakeDelta(-1, 0, 0, {5}, "a")})}), HasSubstr("prompt -1"));
  EXPECT_THAT(outcome({Message({Finished(MakeDelta(0, 0, 0, {}, ""))}),
                       Message({MakeDelta(0, 0, 0, {5}, "a")})}),
              HasSubstr("more of a choice that had ended"));
  EXPECT_THAT(outcome({Message({MakeDelta(0, 0, 0, {5}, "a")})}),
              HasSubstr("ended the stream before the answer's end"));
}

TEST_F(ClientTest, HowAChoiceEndedDecidesTheOutcome) {
  const auto outcome = [this](v1::FinishReason reason) {
    v1::Delta delta = Finished(MakeDelta(0, 0, 0, {5}, "a"), reason);
    if (reason == v1::FINISH_REASON_ERROR) delta.mutable_finish()->set_error("two groups died");
    router_.Answer({Message({delta})});
    return Generate();
  };
  EXPECT_TRUE(outcome(v1::FINISH_REASON_STOP).ok());
  EXPECT_TRUE(outcome(v1::FINISH_REASON_LENGTH).ok());
  EXPECT_EQ(outcome(v1::FINISH_REASON_CANCELLED).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(outcome(v1::FINISH_REASON_DEADLINE).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(outcome(v1::FINISH_REASON_ERROR), Internal("two groups died"));
}

TEST_F(ClientTest, ARefusalKeepsItsCodeAndSentence) {
  router_.SetScript([](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p: is 7");
  });
  EXPECT_EQ(Generate(), InvalidArgument("sampling.top_p: is 7"));
  EXPECT_EQ(out_.str(), "");
}

TEST_F(ClientTest, AnAnswerThatIsCutShortCountsAsFarAsItCame) {
  router_.SetScript([](auto&, auto&, Writer& writer) {
    writer.Write(
        Message({Finished(MakeDelta(0, 0, 0, {5, 6}, "Hel"), v1::FINISH_REASON_DEADLINE)}));
    return grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "the deadline passed");
  });
  EXPECT_EQ(Generate(), DeadlineExceeded("the deadline passed"));
  EXPECT_EQ(out_.str(), "Hel\n");
  EXPECT_THAT(err_.str(), AllOf(StartsWith("2 tokens, "), HasSubstr("; deadline; seed 7")));
}

TEST_F(ClientTest, ADeadRouterIsNamed) {
  const Connection nobody({.endpoints = {"127.0.0.1:1"}});
  const absl::Status status = RunModels(nobody, {}, out_);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(status), StartsWith("router at 127.0.0.1:1: "));
}

TEST_F(ClientTest, TheTenantAndTheDeadlineTravelWithTheCall) {
  bool deadline = false;
  router_.SetScript([&deadline](grpc::ServerContext& context, auto&, Writer& writer) {
    deadline = context.deadline() < std::chrono::system_clock::now() + std::chrono::seconds(61);
    writer.Write(Message({Finished(MakeDelta(0, 0, 0, {}, ""))}));
    return grpc::Status::OK;
  });
  const Connection connection({.endpoints = {router_.address()},
                               .tenant = "blue",
                               .timeout = std::chrono::milliseconds(60000)});
  GenerateOptions options;
  options.request.add_prompts()->set_text("hi");
  EXPECT_TRUE(RunGenerate(connection, options, out_, err_).ok());
  EXPECT_TRUE(deadline);
  EXPECT_THAT(router_.tenants(), ElementsAre("blue"));
}

TEST_F(ClientTest, JsonHoldsTheWholeAnswer) {
  v1::Delta delta = MakeDelta(0, 0, 0, {5}, "a\"\n\x01");
  delta.mutable_tokens(0)->set_logprob(-0.1f);
  v1::TokenLogprob& top = *delta.mutable_tokens(0)->add_top();
  top.set_id(9);
  top.set_logprob(-2.5f);
  delta = Finished(std::move(delta));
  delta.mutable_finish()->set_logits_sha256("\x01\xff");
  delta.mutable_finish()->set_stop_token_id(1);
  delta.mutable_finish()->mutable_timings()->set_decode_us(1500000);
  v1::GenerateResponse message = Message({delta});
  message.set_request_id("r-1");
  message.add_echo()->set_text("hi");
  router_.Answer({message});
  GenerateOptions options;
  options.json = true;
  EXPECT_TRUE(Generate(options).ok());
  EXPECT_EQ(out_.str(),
            R"({"request_id":"r-1","choices":[{"prompt_index":0,"choice_index":0,)"
            R"("text":"a\"\u000a\u0001","tokens":[{"id":5,"logprob":-0.1,"top":[{"id":9,)"
            R"("logprob":-2.5}]}],"finish_reason":"stop","stop_token_id":1,)"
            R"("logits_sha256":"01ff","seed":"7","usage":{"prompt_tokens":3,"cached_tokens":1,)"
            R"("completion_tokens":1},"timings":{"queue_s":0,"prefill_s":0,"decode_s":1.5}}],)"
            R"("echo":[{"prompt_index":0,"text":"hi","tokens":[]}]})"
            "\n");
}

TEST(Json, NumbersThatAreNotFiniteAreNull) {
  JsonWriter json;
  json.BeginArray().Number(std::numeric_limits<double>::quiet_NaN());
  json.Number(-std::numeric_limits<float>::infinity()).Number(1e-7).Integer(-3).Bool(true);
  EXPECT_EQ(json.EndArray().text(), "[null,null,1e-07,-3,true]");
}

// Runs a hook at every flush, which is where shown text becomes visible.
class HookedStream : public std::ostringstream {
 public:
  explicit HookedStream(std::function<void(const std::string&)> hook) : buffer_(std::move(hook)) {
    std::ostream::rdbuf(&buffer_);
  }

 private:
  class Buffer : public std::stringbuf {
   public:
    explicit Buffer(std::function<void(const std::string&)> hook) : hook_(std::move(hook)) {}
    int sync() override {
      hook_(str());
      return 0;
    }

   private:
    std::function<void(const std::string&)> hook_;
  };
  Buffer buffer_;
};

TEST_F(ClientTest, AChatRemembersAndForgets) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  ChatOptions options;
  options.system = "be brief";
  options.request.set_max_tokens(9);
  std::istringstream in("one\n\ntwo\n/reset\nthree\n/exit\nnever\n");
  const Connection connection = Connect();
  ChatSession session(connection, options, in, out_, err_);
  EXPECT_TRUE(session.Run().ok());
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(3));
  EXPECT_THAT(Turns(requests[0]), ElementsAre("system: be brief", "user: one"));
  EXPECT_THAT(Turns(requests[1]),
              ElementsAre("system: be brief", "user: one", "assistant: yes", "user: two"));
  EXPECT_THAT(Turns(requests[2]), ElementsAre("system: be brief", "user: three"));
  EXPECT_EQ(requests[2].max_tokens(), 9);
  EXPECT_EQ(out_.str(), "yes\nyes\nyes\n");
}

TEST_F(ClientTest, AnInterruptedAnswerStaysInTheChatAsFarAsItCame) {
  router_.SetScript(
      [](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        if (request.prompts(0).chat().messages_size() > 1) {
          writer.Write(Message({Finished(MakeDelta(0, 0, 0, {6}, "done"))}));
          return grpc::Status::OK;
        }
        writer.Write(Message({MakeDelta(0, 0, 0, {5}, "par")}));
        while (!context.IsCancelled()) std::this_thread::yield();
        return grpc::Status::CANCELLED;
      });
  ChatSession* session = nullptr;
  HookedStream out([&session](const std::string& shown) {
    if (shown == "par") session->Interrupt();
  });
  std::istringstream in("one\ntwo\n");
  const Connection connection = Connect();
  const ChatOptions options;
  ChatSession chat(connection, options, in, out, err_);
  session = &chat;
  EXPECT_TRUE(chat.Run().ok());
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(2));
  EXPECT_THAT(Turns(requests[1]), ElementsAre("user: one", "assistant: par", "user: two"));
  EXPECT_THAT(err_.str(), StartsWith("[interrupted]\n"));
}

TEST_F(ClientTest, AFailedTurnIsForgottenAndAPersonGoesOn) {
  int calls = 0;
  router_.SetScript([&calls](auto&, auto&, Writer& writer) {
    if (++calls == 1) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "queue is full");
    writer.Write(Message({Finished(MakeDelta(0, 0, 0, {5}, "ok"))}));
    return grpc::Status::OK;
  });
  ChatOptions options;
  options.interactive = true;
  std::istringstream in("one\ntwo\n");
  const Connection connection = Connect();
  ChatSession session(connection, options, in, out_, err_);
  EXPECT_TRUE(session.Run().ok());
  EXPECT_THAT(err_.str(), HasSubstr("queue is full"));
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(2));
  EXPECT_THAT(Turns(requests[1]), ElementsAre("user: two"));

  calls = 0;
  options.interactive = false;
  std::istringstream script("one\ntwo\n");
  ChatSession strict(connection, options, script, out_, err_);
  EXPECT_EQ(strict.Run().code(), absl::StatusCode::kResourceExhausted);
}

v1::GetStatusResponse StatusOf(bool ready) {
  v1::GetStatusResponse response;
  v1::GroupStatus& group = *response.add_groups();
  group.set_address("10.0.0.2:8480");
  group.set_ready(ready);
  group.set_state(ready ? "ready" : "connecting");
  group.mutable_model()->set_name("tiny");
  group.set_ranks(2);
  group.set_running(3);
  group.set_kv_tokens_used(512);
  group.set_kv_tokens_total(16384);
  group.set_output_tokens_per_s(95.25);
  group.set_device("avx512");
  response.set_running_requests(3);
  return response;
}

TEST_F(ClientTest, StatusIsATable) {
  router_.SetStatus({StatusOf(true)});
  EXPECT_TRUE(RunStatus(Connect(), {}, out_).ok());
  EXPECT_EQ(out_.str(),
            "GROUP          STATE  MODEL  DEVICE  RANKS  RUNNING  WAITING           KV TOKENS  "
            "PROMPT TOK/S  OUTPUT TOK/S\n"
            "10.0.0.2:8480  ready  tiny   avx512      2        3        0  512 of 16384 (3 %)  "
            "         0.0          95.2\n"
            "requests: 3 running, 0 queued\n");
}

TEST_F(ClientTest, StatusCanWaitUntilGroupsAreReady) {
  router_.SetStatus({StatusOf(false), StatusOf(false), StatusOf(true)});
  StatusOptions options;
  options.until_ready = 1;
  options.json = true;
  EXPECT_TRUE(RunStatus(Connect(), options, out_).ok());
  EXPECT_THAT(out_.str(), HasSubstr(R"("ready":true,"state":"ready","model":"tiny")"));
}

TEST_F(ClientTest, StatusSaysWhatIsNotReadyInTime) {
  router_.SetStatus({StatusOf(false)});
  StatusOptions options;
  options.until_ready = 2;
  const absl::Status expected = Unavailable("0 of 2 groups are ready; 10.0.0.2:8480: connecting");
  std::chrono::milliseconds timeout(250);
  absl::Status status;
  do {  // until the time is enough for the router to answer
    timeout *= 2;
    const Connection connection({.endpoints = {router_.address()}, .timeout = timeout});
    status = RunStatus(connection, options, out_);
  } while (status != expected && timeout < kLong);
  EXPECT_EQ(status, expected);
}

TEST_F(ClientTest, ModelsAreATableOrJson) {
  EXPECT_TRUE(RunModels(Connect(), {}, out_).ok());
  EXPECT_EQ(out_.str(),
            "NAME  ARCHITECTURE  DESCRIPTION  PARAMETERS  CONTEXT  VOCABULARY\n"
            "tiny  gemma3        Tiny \"Test\"       268 M    32768        1000\n");
  out_.str("");
  EXPECT_TRUE(RunModels(Connect(), {.json = true}, out_).ok());
  EXPECT_THAT(out_.str(), StartsWith(R"({"models":[{"name":"tiny","architecture":"gemma3",)"
                                     R"("description":"Tiny \"Test\"","parameters":268000000)"));
}

}  // namespace
}  // namespace facet::testing
