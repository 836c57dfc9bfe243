// The command-line client against a scripted router in this process.

#include "client/answer.h"

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "client/bench.h"
#include "client/chat.h"
#include "client/connection.h"
#include "client/generate.h"
#include "client/json.h"
#include "client/models.h"
#include "client/options.h"
#include "client/percentiles.h"
#include "client/status.h"
#include "client/table.h"
#include "facet/v1/inference.grpc.pb.h"
#include "serving/grpc_server.h"

namespace facet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::StartsWith;

using Writer = grpc::ServerWriter<v1::GenerateResponse>;
using GenerateScript =
    std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&, Writer&)>;

v1::Delta MakeDelta(int prompt, int choice, int offset, std::vector<int> ids, std::string text) {
  v1::Delta delta;
  delta.set_prompt_index(prompt);
  delta.set_choice_index(choice);
  delta.set_offset(offset);
  for (const int id : ids) delta.add_tokens()->set_id(id);
  delta.set_text(std::move(text));
  return delta;
}

v1::Delta Finished(v1::Delta delta, v1::FinishReason reason = v1::FINISH_REASON_STOP) {
  v1::Finish& finish = *delta.mutable_finish();
  finish.set_reason(reason);
  finish.set_seed(7);
  finish.mutable_usage()->set_prompt_tokens(3);
  finish.mutable_usage()->set_cached_tokens(1);
  finish.mutable_usage()->set_completion_tokens(delta.offset() + delta.tokens_size());
  return delta;
}

v1::GenerateResponse Message(const std::vector<v1::Delta>& deltas) {
  v1::GenerateResponse response;
  for (const v1::Delta& delta : deltas) *response.add_deltas() = delta;
  return response;
}

// A router that answers as its test says, and remembers what it was asked.
class FakeRouter : public v1::Inference::Service, v1::Models::Service, v1::Status::Service {
 public:
  FakeRouter() {
    grpc::ServerBuilder builder;
    builder.RegisterService(static_cast<v1::Inference::Service*>(this));
    builder.RegisterService(static_cast<v1::Models::Service*>(this));
    builder.RegisterService(static_cast<v1::Status::Service*>(this));
    auto running = StartGrpcServer(builder, {.listen = "127.0.0.1:0"});
    EXPECT_TRUE(running.ok()) << running.status();
    running_ = *std::move(running);
  }
  ~FakeRouter() override { ShutDown(*running_.server, std::chrono::milliseconds(0)); }

  const std::string& address() const { return running_.address; }
  // Answers every call with these messages.
  void Answer(std::vector<v1::GenerateResponse> messages) {
    script_ = [messages = std::move(messages)](grpc::ServerContext&, const v1::GenerateRequest&,
                                               Writer& writer) {
      for (const auto& message : messages) writer.Write(message);
      return grpc::Status::OK;
    };
  }
  void SetScript(GenerateScript script) { script_ = std::move(script); }
  // Status calls get these one after the other, the last one again and again.
  void SetStatus(std::vector<v1::GetStatusResponse> statuses) { statuses_ = std::move(statuses); }
  std::vector<v1::GenerateRequest> requests() {
    std::lock_guard lock(mutex_);
    return requests_;
  }
  std::vector<std::string> tenants() {
    std::lock_guard lock(mutex_);
    return tenants_;
  }

 private:
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        Writer* writer) override {
    {
      std::lock_guard lock(mutex_);
      requests_.push_back(*request);
      const auto tenant = context->client_metadata().find("facet-tenant");
      tenants_.push_back(tenant == context->client_metadata().end()
                             ? std::string()
                             : std::string(tenant->second.data(), tenant->second.size()));
    }
    return script_(*context, *request, *writer);
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListModelsRequest*,
                    v1::ListModelsResponse* response) override {
    v1::ModelInfo& model = *response->add_models();
    model.set_name("tiny");
    model.set_architecture("gemma3");
    model.set_description("Tiny \"Test\"");
    model.set_parameters(268000000);
    model.set_context_tokens(32768);
    model.set_vocabulary_size(1000);
    model.set_digest(0xabc);
    model.set_fingerprint("0abc-f16-1");
    return grpc::Status::OK;
  }
  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::GetStatusResponse* response) override {
    std::lock_guard lock(mutex_);
    *response = statuses_.at(std::min(status_calls_++, statuses_.size() - 1));
    return grpc::Status::OK;
  }

  RunningServer running_;
  GenerateScript script_;
  std::mutex mutex_;
  std::vector<v1::GenerateRequest> requests_;
  std::vector<std::string> tenants_;
  std::vector<v1::GetStatusResponse> statuses_;
  size_t status_calls_ = 0;
};

class ClientTest : public testing::Test {
 protected:
  Connection Connect() { return Connection({.endpoint = router_.address()}); }
  absl::Status Generate(GenerateOptions options = {}) {
    if (options.request.prompts().empty()) options.request.add_prompts()->set_text("hi");
    return RunGenerate(Connect(), options, out_, err_);
  }

  FakeRouter router_;
  std::ostringstream out_;
  std::ostringstream err_;
};

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
  const Connection nobody({.endpoint = "127.0.0.1:1"});
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
  const Connection connection({.endpoint = router_.address(),
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

std::vector<std::string> Turns(const v1::GenerateRequest& request) {
  std::vector<std::string> turns;
  for (const v1::ChatMessage& message : request.prompts(0).chat().messages()) {
    turns.push_back(message.role() + ": " + message.content());
  }
  return turns;
}

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
  const Connection connection(
      {.endpoint = router_.address(), .timeout = std::chrono::milliseconds(200)});
  EXPECT_EQ(RunStatus(connection, options, out_),
            Unavailable("0 of 2 groups are ready; 10.0.0.2:8480: connecting"));
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

BenchOptions SmallBench() {
  BenchOptions options;
  options.streams = 3;
  options.requests = 7;
  options.prompt_tokens = 20;
  options.max_tokens = 4;
  return options;
}

GenerateScript FourTokens() {
  return [](grpc::ServerContext&, const v1::GenerateRequest&, Writer& writer) {
    writer.Write(Message({MakeDelta(0, 0, 0, {1}, "a")}));
    writer.Write(Message({Finished(MakeDelta(0, 0, 1, {2, 3, 4}, "bcd"))}));
    return grpc::Status::OK;
  };
}

TEST_F(ClientTest, BenchCountsWhatItReceived) {
  router_.SetScript(FourTokens());
  const auto report = MeasureBench(Connect(), SmallBench(), err_);
  ASSERT_TRUE(report.ok()) << report.status();
  const BenchSamples& samples = report->samples;
  EXPECT_EQ(samples.completed, 7);
  EXPECT_EQ(samples.cut_off, 0);
  EXPECT_EQ(samples.output_tokens, 28);
  EXPECT_EQ(samples.prompt_tokens, 140);
  EXPECT_THAT(samples.errors, IsEmpty());
  EXPECT_THAT(samples.ttft, SizeIs(7));
  EXPECT_THAT(samples.tpot, SizeIs(7));
  EXPECT_THAT(samples.itl, SizeIs(21));
  EXPECT_GT(report->wall_s, 0);
  for (size_t i = 0; i < samples.tpot.size(); ++i) EXPECT_GT(samples.tpot[i], 0);
}

TEST_F(ClientTest, BenchAsksForDifferentPromptsTheSameEveryTime) {
  router_.SetScript(FourTokens());
  ASSERT_TRUE(MeasureBench(Connect(), SmallBench(), err_).ok());
  const auto prompts = [](const std::vector<v1::GenerateRequest>& requests) {
    std::set<std::vector<int>> all;
    for (const v1::GenerateRequest& request : requests) {
      const auto& ids = request.prompts(0).tokens().ids();
      EXPECT_EQ(ids.size(), 20);
      for (const int id : ids) EXPECT_TRUE(id >= 500 && id < 1000) << id;
      EXPECT_TRUE(request.ignore_eos());
      EXPECT_EQ(request.max_tokens(), 4);
      all.emplace(ids.begin(), ids.end());
    }
    return all;
  };
  const auto first = prompts(router_.requests());
  EXPECT_THAT(first, SizeIs(8)) << "seven, and one to warm up";
  ASSERT_TRUE(MeasureBench(Connect(), SmallBench(), err_).ok());
  EXPECT_EQ(prompts(router_.requests()), first);
  BenchOptions other = SmallBench();
  other.seed = 2;
  ASSERT_TRUE(MeasureBench(Connect(), other, err_).ok());
  EXPECT_THAT(prompts(router_.requests()), SizeIs(16));
}

TEST_F(ClientTest, BenchTellsErrorsApart) {
  std::mutex mutex;
  int calls = 0;
  router_.SetScript(
      [&](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        std::lock_guard lock(mutex);
        if (++calls % 2 == 0) return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full");
        return FourTokens()(context, request, writer);
      });
  const absl::Status status = RunBench(Connect(), SmallBench(), out_, err_);
  EXPECT_EQ(status, Internal("4 requests failed"));
  EXPECT_THAT(out_.str(),
              AllOf(HasSubstr("3 requests done"), HasSubstr("4 x RESOURCE_EXHAUSTED: full\n")));
}

TEST_F(ClientTest, BenchEndsWhenTheFirstRequestFails) {
  router_.SetScript([](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "prompts[0]: too long");
  });
  EXPECT_EQ(RunBench(Connect(), SmallBench(), out_, err_),
            InvalidArgument("the first request failed: prompts[0]: too long"));
  BenchOptions unknown = SmallBench();
  unknown.model = "huge";
  EXPECT_EQ(RunBench(Connect(), unknown, out_, err_), NotFound("model 'huge' is not served"));
}

TEST_F(ClientTest, BenchCutsOffWhatRunsWhenTheTimeIsUp) {
  int calls = 0;
  std::mutex mutex;
  router_.SetScript(
      [&](grpc::ServerContext& context, const v1::GenerateRequest& request, Writer& writer) {
        {
          std::lock_guard lock(mutex);
          if (++calls == 1) return FourTokens()(context, request, writer);
        }
        writer.Write(Message({MakeDelta(0, 0, 0, {1}, "a")}));
        while (!context.IsCancelled()) std::this_thread::yield();
        return grpc::Status::CANCELLED;
      });
  BenchOptions options = SmallBench();
  options.requests = 0;
  options.duration = std::chrono::milliseconds(300);
  const auto report = MeasureBench(Connect(), options, err_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(report->samples.completed, 0);
  EXPECT_EQ(report->samples.cut_off, 3);
  EXPECT_THAT(report->samples.errors, IsEmpty());
  EXPECT_EQ(report->samples.output_tokens, 3);
  EXPECT_GE(report->wall_s, 0.3);
}

TEST_F(ClientTest, BenchJsonReadsBack) {
  router_.SetScript(FourTokens());
  BenchOptions options = SmallBench();
  options.json = true;
  EXPECT_TRUE(RunBench(Connect(), options, out_, err_).ok());
  EXPECT_THAT(out_.str(),
              AllOf(StartsWith(R"({"streams":3,"prompt_tokens_per_request":20,"max_tokens":4,)"),
                    HasSubstr(R"("output_tokens":28)"), HasSubstr(R"("errors":{}})")));
}

TEST(Percentiles, AreTheNearestRank) {
  std::vector<double> samples;
  for (int i = 100; i >= 1; --i) samples.push_back(i);
  const Percentiles hundred = PercentilesOf(samples);
  EXPECT_EQ(hundred.p50, 50);
  EXPECT_EQ(hundred.p90, 90);
  EXPECT_EQ(hundred.p99, 99);
  EXPECT_EQ(PercentilesOf({4.0}).p50, 4.0);
  EXPECT_EQ(PercentilesOf({4.0, 9.0}).p50, 4.0);
  EXPECT_EQ(PercentilesOf({4.0, 9.0}).p90, 9.0);
  EXPECT_EQ(PercentilesOf({}).p99, 0.0);
}

// The binary itself: flags, streams and exit codes.
class FacetBinary : public ClientTest {
 protected:
  struct Result {
    int exit_code;
    std::string out;  // and stderr, where the command says so
  };
  Result Run(const std::string& arguments) {
    const std::string command =
        "FACET_ENDPOINT=" + router_.address() + " " FACET_BINARY " " + arguments;
    std::FILE* pipe = popen(command.c_str(), "r");
    Result result;
    std::array<char, 4096> buffer;
    while (const size_t n = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
      result.out.append(buffer.data(), n);
    }
    result.exit_code = WEXITSTATUS(pclose(pipe));
    return result;
  }
};

TEST_F(FacetBinary, FlagsBecomeTheRequest) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  const Result result =
      Run("generate --temperature 0 --top-k=5 --top_p .5 --min-p 0.25 --repetition-penalty 1.5 "
          "--presence-penalty -1 --frequency-penalty 2 --seed 18446744073709551615 --max-tokens 12 "
          "--n 1 --logprobs 3 --ignore-eos --stop 'a\\,b,c\\n' --model tiny --system short --echo "
          "'How are you?' 2>/dev/null");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "yes\n");
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  const v1::GenerateRequest& request = requests[0];
  EXPECT_EQ(request.model(), "tiny");
  EXPECT_THAT(Turns(request), ElementsAre("system: short", "user: How are you?"));
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0.0f);
  EXPECT_EQ(request.sampling().top_k(), 5);
  EXPECT_EQ(request.sampling().top_p(), 0.5f);
  EXPECT_EQ(request.sampling().min_p(), 0.25f);
  EXPECT_EQ(request.sampling().repetition_penalty(), 1.5f);
  EXPECT_EQ(request.sampling().presence_penalty(), -1.0f);
  EXPECT_EQ(request.sampling().frequency_penalty(), 2.0f);
  EXPECT_EQ(request.seed(), std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(request.max_tokens(), 12);
  EXPECT_EQ(request.n(), 1);
  EXPECT_EQ(request.logprobs(), 3);
  EXPECT_TRUE(request.ignore_eos());
  EXPECT_TRUE(request.echo());
  EXPECT_THAT(request.stop(), ElementsAre("a,b", "c\n"));
}

TEST_F(FacetBinary, WhatIsNotAskedForStaysUnset) {
  router_.Answer({Message({Finished(MakeDelta(0, 0, 0, {5}, "yes"))})});
  EXPECT_EQ(Run("generate --raw --prompt=Once 2>/dev/null").exit_code, 0);
  v1::GenerateRequest expected;
  expected.add_prompts()->set_text("Once");
  expected.mutable_sampling();
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  EXPECT_EQ(requests[0].SerializeAsString(), expected.SerializeAsString());
}

TEST_F(FacetBinary, PromptsComeFromStandardInputOrAsTokenIds) {
  router_.SetScript([](auto&, const v1::GenerateRequest& request, Writer& writer) {
    for (int i = 0; i < request.prompts_size(); ++i) {
      writer.Write(Message({Finished(MakeDelta(i, 0, 0, {5}, "yes"))}));
    }
    return grpc::Status::OK;
  });
  const Result result =
      Run("generate --raw --prompt - --token-ids 2,106 2>/dev/null <<END\ntwo\nlines\nEND\n");
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_EQ(result.out, "yes\nyes\n");
  const auto requests = router_.requests();
  ASSERT_THAT(requests, SizeIs(1));
  EXPECT_EQ(requests[0].prompts(0).text(), "two\nlines\n");
  EXPECT_THAT(requests[0].prompts(1).tokens().ids(), ElementsAre(2, 106));
}

TEST_F(FacetBinary, ExitCodesTellFailureFromMisuse) {
  router_.SetScript([](auto&, auto&, auto&) {
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "sampling.top_p: is 7");
  });
  Result result = Run("generate --top-p 7 hi 2>&1");
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_EQ(result.out, "facet: INVALID_ARGUMENT: sampling.top_p: is 7\n");
  for (const char* misuse :
       {"", "sing", "generate", "status x", "status --n 2", "generate --n x hi",
        "generate --token-ids 1,x", "bench --streams 0",
        "bench --requests 1 "
        "--seconds 1",
        "status --watch 0", "models --timeout-s -1", "generate --stop 'a\\' hi"}) {
    result = Run(std::string(misuse) + " 2>&1");
    EXPECT_EQ(result.exit_code, 2) << misuse;
    EXPECT_THAT(result.out, AllOf(StartsWith("facet: "), HasSubstr("--help)\n"))) << misuse;
  }
  EXPECT_THAT(Run("status --n 2 2>&1").out, HasSubstr("--n is not a flag of facet status"));
}

TEST_F(FacetBinary, HelpGoesToStdout) {
  EXPECT_THAT(Run("--help 2>/dev/null").out, HasSubstr("\n  bench "));
  for (const CommandHelp& command : Commands()) {
    const Result result = Run(std::string(command.name) + " --help 2>/dev/null");
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_THAT(result.out, StartsWith("facet " + std::string(command.name)));
    for (const std::string_view flag : command.flags) {
      EXPECT_THAT(result.out, HasSubstr("\n  --" + std::string(flag)));
    }
  }
}

}  // namespace
}  // namespace facet
