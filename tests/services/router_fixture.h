#ifndef FACET_TESTS_SERVICES_ROUTER_FIXTURE_H_
#define FACET_TESTS_SERVICES_ROUTER_FIXTURE_H_

// A router in this process with a tiny vocabulary, fake leaders behind it and a client before it.

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/gguf.h"
#include "facet/v1/inference.grpc.pb.h"
#include "router/service/router_server.h"
#include "tests/base/patience.h"
#include "tests/base/temp_folder.h"
#include "tests/services/fake_leader.h"
#include "tests/services/tiny_model.h"

namespace facet::testing {

// These tokens, then the end of the answer.
inline FakeLeader::Script Saying(std::vector<TokenId> tokens) {
  return [tokens = std::move(tokens)](const v1::Submit&, int position) {
    return position < std::ssize(tokens) ? tokens[position] : kEos;
  };
}

// A whole answer, gathered from its messages; gathering checks what must hold for any answer.
struct Answer {
  struct Choice {
    std::string text;
    std::vector<TokenId> ids;
    std::vector<v1::TokenOutput> tokens;
    std::optional<v1::Finish> finish;
  };
  std::string request_id;
  std::map<std::pair<int, int>, Choice> choices;
  std::vector<v1::PromptEcho> echo;
  int messages = 0;

  void Add(const v1::GenerateResponse& response) {
    if (messages++ == 0) request_id = response.request_id();
    for (const v1::PromptEcho& prompt : response.echo()) echo.push_back(prompt);
    for (const v1::Delta& delta : response.deltas()) {
      Choice& choice = choices[{delta.prompt_index(), delta.choice_index()}];
      EXPECT_FALSE(choice.finish.has_value()) << "a delta after the finish";
      EXPECT_EQ(delta.offset(), std::ssize(choice.ids));
      for (const v1::TokenOutput& token : delta.tokens()) {
        choice.ids.push_back(token.id());
        choice.tokens.push_back(token);
      }
      choice.text += delta.text();
      if (delta.has_finish()) choice.finish = delta.finish();
    }
  }
};

// The choice of an answer that has one.
inline const Answer::Choice& Only(const Answer& answer) {
  EXPECT_EQ(answer.choices.size(), 1u);
  return answer.choices.begin()->second;
}

class RouterFixture : public ::testing::Test {
 protected:
  RouterFixture() {
    WriteTinyModel(folder_.File("tiny.gguf"));
    const auto model = GgufModel::Open(folder_.File("tiny.gguf"));
    FACET_CHECK(model.ok(), "{}", model.status().ToString());
    info_.set_name("tiny");
    info_.set_context_tokens(kContext);
    info_.set_vocabulary_size(kVocabularySize);
    info_.set_digest(model->digest());
    info_.set_fingerprint("f16-1");
    options_.model_path = folder_.File("tiny.gguf");
    options_.server.listen = "unix:" + folder_.File("router.sock");
    options_.dispatcher.session.backoff_min_us = 10'000;
    options_.dispatcher.session.backoff_max_us = 50'000;
  }
  ~RouterFixture() override {
    stub_.reset();
    router_.reset();
  }

  std::string LeaderAddress(int index) {
    return fmt::format("unix:{}", folder_.File(fmt::format("leader{}.sock", index)));
  }
  FakeLeader& AddLeader(FakeLeader::Script script, int tokens_per_message = 1) {
    const std::string address = LeaderAddress(static_cast<int>(leaders_.size()));
    leaders_.push_back(std::make_unique<FakeLeader>(
        FakeLeader::Options{.address = address,
                            .model = info_,
                            .credit_tokens = credit_tokens_,
                            .script = std::move(script),
                            .tokens_per_message = tokens_per_message}));
    options_.dispatcher.leaders.leaders.push_back(address);
    return *leaders_.back();
  }
  // Starts the router and waits until it sees every leader that was added.
  void Start() {
    router_ = StartRouter();
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // windows stay at 64 KiB
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetMaxReceiveMessageSize(-1);
    channel_ = grpc::CreateCustomChannel(router_->address(), grpc::InsecureChannelCredentials(),
                                         arguments);
    stub_ = v1::Inference::NewStub(channel_);
    ASSERT_TRUE(WaitForStatus([this](const v1::GetStatusResponse& status) {
      return ReadyGroups(status) == std::ssize(leaders_);
    }));
  }

  std::unique_ptr<RouterServer> StartRouter() {
    auto router = RouterServer::Start(options_, registry_);
    FACET_CHECK(router.ok(), "{}", router.status().ToString());
    return *std::move(router);
  }

  static int64_t ReadyGroups(const v1::GetStatusResponse& status) {
    int64_t ready = 0;
    for (const v1::GroupStatus& group : status.groups()) ready += group.ready();
    return ready;
  }
  v1::GetStatusResponse Status() {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    const grpc::Status status =
        v1::Status::NewStub(channel_)->GetStatus(&context, v1::GetStatusRequest(), &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }
  bool WaitForStatus(const std::function<bool(const v1::GetStatusResponse&)>& condition) {
    const auto give_up = std::chrono::steady_clock::now() + kLong;
    while (!condition(Status())) {
      if (std::chrono::steady_clock::now() > give_up) return false;
      std::this_thread::yield();
    }
    return true;
  }
  bool WaitUntilQuiet() {
    return WaitForStatus([](const v1::GetStatusResponse& status) {
      return status.queued_requests() + status.running_requests() == 0;
    });
  }

  static v1::GenerateRequest TextRequest(const std::string& text = " a b") {
    v1::GenerateRequest request;
    request.add_prompts()->set_text(text);
    request.set_seed(7);
    return request;
  }
  grpc::Status Generate(const v1::GenerateRequest& request, Answer* answer) {
    grpc::ClientContext context;
    return Generate(request, answer, context);
  }
  grpc::Status Generate(const v1::GenerateRequest& request, Answer* answer,
                        grpc::ClientContext& context) {
    const auto reader = stub_->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) answer->Add(response);
    return reader->Finish();
  }
  // The status of a request that is refused.
  grpc::Status StatusOf(const v1::GenerateRequest& request) {
    Answer answer;
    const grpc::Status status = Generate(request, &answer);
    EXPECT_EQ(answer.messages, 0);
    return status;
  }

  TempFolder folder_;
  v1::ModelInfo info_;
  int64_t credit_tokens_ = 1 << 20;
  RouterOptions options_;
  prometheus::Registry registry_;
  std::vector<std::unique_ptr<FakeLeader>> leaders_;
  std::unique_ptr<RouterServer> router_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_ROUTER_FIXTURE_H_
