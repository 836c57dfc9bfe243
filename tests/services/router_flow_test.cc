// Requests that come, wait, are refused and go; readers that are slow.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <prometheus/text_serializer.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "google/rpc/status.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "serving/retry_delay.h"
#include "tests/services/router_fixture.h"

namespace facet::testing {
namespace {

using ::testing::HasSubstr;

class RouterFlow : public RouterFixture {};

// A call on a connection of its own whose client reads nothing, and whose window holds no message.
class UnreadCall {
 public:
  template <typename Request>
  UnreadCall(const std::string& address, const std::string& method, const Request& request)
      : stub_(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(),
                                        SmallWindows())) {
    call_ = stub_.PrepareCall(&context_, method, &queue_);
    call_->StartCall(nullptr);
    Await();
    grpc::ByteBuffer bytes;
    bool own = false;
    EXPECT_TRUE(grpc::SerializationTraits<Request>::Serialize(request, &bytes, &own).ok());
    call_->WriteLast(bytes, grpc::WriteOptions(), nullptr);
    Await();
  }

 private:
  static grpc::ChannelArguments SmallWindows() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 5);
    return arguments;
  }
  void Await() {
    void* tag = nullptr;
    bool ok = false;
    EXPECT_TRUE(queue_.Next(&tag, &ok));
  }

  grpc::GenericStub stub_;
  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

TEST_F(RouterFlow, AVanishedClientCancelsItsSequences) {
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

TEST_F(RouterFlow, ADeadlineEndsTheStreamWithItsUsage) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(4);
  // Half of the time is for the tokens, half for the answer.
  options_.inference.deadline_margin_us = 60'000'000;
  Start();
  Answer answer;
  // Until the time is enough for both.
  for (std::chrono::seconds time(1);
       answer.choices.empty() || !Only(answer).finish || Only(answer).ids.size() < 4; time *= 2) {
    ASSERT_LT(time, kLong);
    answer = Answer();
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + time);
    const grpc::Status status = Generate(TextRequest(), &answer, context);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  EXPECT_EQ(Only(answer).finish->reason(), v1::FINISH_REASON_DEADLINE);
  EXPECT_EQ(Only(answer).finish->usage().completion_tokens(), 4);
  EXPECT_EQ(Only(answer).finish->usage().prompt_tokens(), 3);
  EXPECT_TRUE(leader.WaitUntilIdle());
}

TEST_F(RouterFlow, RequestsWithoutADeadlineHaveTheRouters) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(1);
  options_.inference.request_max_us = 1'000'000;
  Start();
  Answer answer;
  const grpc::Status status = Generate(TextRequest(), &answer);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(status.error_message(), "the request's deadline passed");
  ASSERT_EQ(answer.choices.size(), 1u);
  ASSERT_TRUE(Only(answer).finish);
  EXPECT_EQ(Only(answer).finish->usage().completion_tokens(), std::ssize(Only(answer).ids));
}

TEST_F(RouterFlow, ARequestIdIsUniqueWhileItLives) {
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

TEST_F(RouterFlow, AFullQueueRefusesWithARetryDelay) {
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
  const auto delay = RetryDelayOf(status, refused);
  ASSERT_TRUE(delay);
  EXPECT_GT(*delay, std::chrono::milliseconds(0));
  google::rpc::Status details;  // as clients in other languages read it
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(details.message(), status.error_message());
  EXPECT_EQ(details.details(0).type_url(), "type.googleapis.com/google.rpc.RetryInfo");
  waiting.TryCancel();
  reader->Finish();
  EXPECT_TRUE(WaitUntilQuiet());
}

TEST_F(RouterFlow, ASlowReaderPausesItsRequestAndMissesNothing) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.stream.pending_bytes_max = 16 << 10;
  options_.dispatcher.stall_max_us = 600'000'000;  // nobody is dropped here
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_logprobs(20);  // about 1 MB per choice
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() >= 4; }));
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

TEST_F(RouterFlow, AClientThatNeverReadsIsDropped) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.stream.pending_bytes_max = 16 << 10;
  options_.dispatcher.stall_max_us = 100'000;
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_n(4);
  request.set_logprobs(20);
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, request);
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() >= 4; }));
  EXPECT_TRUE(WaitUntilQuiet());
  v1::GenerateResponse response;
  while (reader->Read(&response)) {
  }
  EXPECT_FALSE(reader->Finish().ok());
}

TEST_F(RouterFlow, AnswersThatAreNeverReadHoldUpNoDrain) {
  AddLeader(Saying({kA, kB}));
  options_.dispatcher.stall_max_us = 100'000;
  Start();
  v1::TokenizeRequest tokenize;
  tokenize.mutable_prompt()->set_text(" a b");
  const std::string& address = router_->address();
  UnreadCall completion(address, "/facet.v1.Inference/Complete", TextRequest());
  UnreadCall tokens(address, "/facet.v1.Inference/Tokenize", tokenize);
  UnreadCall models(address, "/facet.v1.Models/List", v1::ListModelsRequest());
  UnreadCall check(address, "/grpc.health.v1.Health/Check", grpc::health::v1::HealthCheckRequest());
  UnreadCall watch(address, "/grpc.health.v1.Health/Watch", grpc::health::v1::HealthCheckRequest());
  const auto give_up = std::chrono::steady_clock::now() + kLong;
  while (prometheus::TextSerializer()
             .Serialize(registry_.Collect())
             .find("facet_router_slow_readers_dropped_total 5\n") == std::string::npos) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up);
    std::this_thread::yield();
  }
  router_->Drain(std::chrono::hours(1));
}

TEST_F(RouterFlow, AnAnswerTooBigForOneMessageEndsComplete) {
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

TEST_F(RouterFlow, ManyClientsAtOnceGetTheirOwnAnswers) {
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

TEST_F(RouterFlow, DrainingLetsRequestsEndAndRefusesNewOnes) {
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
  std::thread drain([this] { router_->Drain(std::chrono::hours(1)); });
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

TEST_F(RouterFlow, ADrainThatRunsOutOfTimeEndsStreamsForAnotherRouter) {
  FakeLeader& leader = AddLeader(Letters());
  leader.HoldAt(2);
  Start();
  grpc::ClientContext context;
  const auto reader = stub_->Generate(&context, TextRequest());
  v1::GenerateResponse response;
  Answer answer;
  while ((answer.choices.empty() || Only(answer).ids.size() < 2) && reader->Read(&response)) {
    answer.Add(response);
  }
  router_->Drain(std::chrono::milliseconds(50));
  while (reader->Read(&response)) answer.Add(response);
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "the router is shutting down");
  EXPECT_FALSE(Only(answer).finish);
  EXPECT_EQ(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() == 1; }), true);
}

TEST_F(RouterFlow, ReadersThatNeverReadCostTheOthersNothing) {
  FakeLeader& leader = AddLeader(Letters(), 64);
  options_.inference.stream.pending_bytes_max = 16 << 10;
  options_.dispatcher.stall_max_us = 600'000'000;  // nobody is dropped here
  Start();
  v1::GenerateRequest request = TextRequest();
  request.set_logprobs(20);  // about 1 MB per choice
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>>> never;
  for (int i = 0; i < 8; ++i) {
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    never.push_back(stub_->Generate(contexts.back().get(), request));
  }
  EXPECT_TRUE(leader.Wait([](const FakeLeader& l) { return l.cancels_seen() >= 8; }));
  const auto other = v1::Inference::NewStub(
      grpc::CreateChannel(router_->address(), grpc::InsecureChannelCredentials()));
  for (int i = 0; i < 8; ++i) {
    request.set_seed(i);
    grpc::ClientContext context;
    const auto reader = other->Generate(&context, request);
    v1::GenerateResponse response;
    Answer answer;
    while (reader->Read(&response)) answer.Add(response);
    EXPECT_TRUE(reader->Finish().ok());
    EXPECT_EQ(Only(answer).text, LettersOf(SequenceSeed(i, 0, 0), kContext - 3));
  }
  EXPECT_EQ(Status().running_requests(), 8);  // the slow ones wait
  EXPECT_TRUE(leader.WaitUntilIdle());        // and hold nothing
  for (auto& context : contexts) context->TryCancel();
  for (auto& reader : never) {
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    reader->Finish();
  }
  EXPECT_TRUE(WaitUntilQuiet());
}

}  // namespace
}  // namespace facet::testing
