#ifndef FACET_TESTS_SERVICES_CLIENT_FIXTURE_H_
#define FACET_TESTS_SERVICES_CLIENT_FIXTURE_H_

// The command-line client against a scripted router in this process.

#include <gmock/gmock.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "client/connection.h"
#include "client/generate.h"
#include "client/options.h"
#include "facet/v1/inference.grpc.pb.h"
#include "serving/grpc_server.h"
#include "tests/base/patience.h"

namespace facet::testing {

using Writer = grpc::ServerWriter<v1::GenerateResponse>;
using GenerateScript =
    std::function<grpc::Status(grpc::ServerContext&, const v1::GenerateRequest&, Writer&)>;

inline v1::Delta MakeDelta(int prompt, int choice, int offset, std::vector<int> ids,
                           std::string text) {
  v1::Delta delta;
  delta.set_prompt_index(prompt);
  delta.set_choice_index(choice);
  delta.set_offset(offset);
  for (const int id : ids) delta.add_tokens()->set_id(id);
  delta.set_text(std::move(text));
  return delta;
}

inline v1::Delta Finished(v1::Delta delta, v1::FinishReason reason = v1::FINISH_REASON_STOP) {
  v1::Finish& finish = *delta.mutable_finish();
  finish.set_reason(reason);
  finish.set_seed(7);
  finish.mutable_usage()->set_prompt_tokens(3);
  finish.mutable_usage()->set_cached_tokens(1);
  finish.mutable_usage()->set_completion_tokens(delta.offset() + delta.tokens_size());
  return delta;
}

inline v1::GenerateResponse Message(const std::vector<v1::Delta>& deltas) {
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
  // How long was asked for, call after call.
  std::vector<int64_t> profiles() {
    std::lock_guard lock(mutex_);
    return profiles_;
  }
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

  grpc::Status Profile(grpc::ServerContext*, const v1::ProfileRequest* request,
                       v1::ProfileResponse*) override {
    std::lock_guard lock(mutex_);
    profiles_.push_back(request->duration_us());
    return grpc::Status::OK;
  }

  RunningServer running_;
  GenerateScript script_;
  std::mutex mutex_;
  std::vector<v1::GenerateRequest> requests_;
  std::vector<std::string> tenants_;
  std::vector<int64_t> profiles_;
  std::vector<v1::GetStatusResponse> statuses_;
  size_t status_calls_ = 0;
};

// A connection that stands to every router: what a test then asks is not lost to a first attempt
// that takes too long.
inline Connection ConnectTo(ConnectionOptions options) {
  Connection connection(std::move(options));
  for (const RouterStubs& router : connection.routers) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    v1::ListModelsResponse models;
    const grpc::Status status = router.models->List(&context, v1::ListModelsRequest(), &models);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  return connection;
}

class ClientTest : public ::testing::Test {
 protected:
  Connection Connect() { return ConnectTo({.endpoints = {router_.address()}}); }
  absl::Status Generate(GenerateOptions options = {}) {
    if (options.request.prompts().empty()) options.request.add_prompts()->set_text("hi");
    return RunGenerate(Connect(), options, out_, err_);
  }

  FakeRouter router_;
  std::ostringstream out_;
  std::ostringstream err_;
};

inline std::vector<std::string> Turns(const v1::GenerateRequest& request) {
  std::vector<std::string> turns;
  for (const v1::ChatMessage& message : request.prompts(0).chat().messages()) {
    turns.push_back(message.role() + ": " + message.content());
  }
  return turns;
}

}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_CLIENT_FIXTURE_H_
