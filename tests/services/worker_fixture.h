#ifndef FACET_TESTS_SERVICES_WORKER_FIXTURE_H_
#define FACET_TESTS_SERVICES_WORKER_FIXTURE_H_

// The worker's services end to end, in one process and over real gRPC: a leader with a fake rank,
// routers that are plain gRPC clients, and followers on threads.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <chrono>
#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "facet/v1/shard.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "serving/grpc_channel.h"
#include "serving/pulse.h"
#include "shard_worker/service/follower.h"
#include "shard_worker/service/group_link.h"
#include "shard_worker/service/leader.h"
#include "tests/base/patience.h"
#include "tests/services/fake_rank.h"

namespace facet::testing {
using std::chrono::milliseconds;
using ::testing::HasSubstr;

inline EngineOptions SmallEngine() {
  EngineOptions options;
  options.block_tokens = 16;
  options.blocks = {256, 256};
  options.window = 64;
  options.context_tokens = 1024;
  options.vocabulary_size = 1000;
  options.step_tokens_max = 64;
  options.sequences_max = 8;
  options.waiting_max = 8;
  options.prefill_chunk_max = 64;
  return options;
}

inline v1::Submit Submit(uint64_t sequence, int prompt, int max_tokens) {
  v1::Submit submit;
  submit.set_sequence(sequence);
  for (int i = 0; i < prompt; ++i) submit.add_tokens((i * 13 + static_cast<int>(sequence)) % 1000);
  submit.set_prompt_length(prompt);
  submit.set_max_tokens(max_tokens);
  submit.set_seed(sequence * 1000);
  return submit;
}

// What the fake must answer.
inline std::vector<int32_t> Expected(const v1::Submit& submit, const EngineOptions& options) {
  std::vector<TokenId> tokens(submit.tokens().begin(), submit.tokens().end());
  for (int i = 0; i < submit.max_tokens(); ++i) {
    const uint64_t logits = FakeExecutor::LogitsAfter(tokens, options);
    const auto position = static_cast<int64_t>(tokens.size());
    tokens.push_back(FakeExecutor::Choose(logits, options, submit.seed(), position, 0).id);
  }
  return {tokens.begin() + submit.tokens_size(), tokens.end()};
}

// What came back of one sequence.
struct Answer {
  std::vector<int32_t> tokens;
  std::vector<int32_t> prompt;
  v1::SequenceDelta last;  // with the finish
};

// A router, as far as a leader can tell.
class Router {
 public:
  explicit Router(const std::string& address)
      : stub_(v1::Leader::NewStub(MakeChannel(address))), stream_(Connect(*stub_, context_)) {}
  ~Router() {
    if (stream_ != nullptr) End();
  }

  // The first message: who the leader is.
  v1::LeaderState First() {
    v1::LeaderMessage message;
    if (!stream_->Read(&message)) return {};
    return message.state();
  }
  void Send(const std::vector<v1::Submit>& submits, const std::vector<uint64_t>& cancels = {}) {
    v1::RouterMessage message;
    for (const v1::Submit& submit : submits) *message.add_submits() = submit;
    for (const uint64_t sequence : cancels) message.add_cancels()->set_sequence(sequence);
    EXPECT_TRUE(stream_->Write(message));
  }
  void AskForProfile(int64_t duration_us) {
    v1::RouterMessage message;
    message.set_profile_us(duration_us);
    EXPECT_TRUE(stream_->Write(message));
  }
  // Reads one message into the answers. False at the stream's end.
  bool Read() {
    v1::LeaderMessage message;
    if (!stream_->Read(&message)) return false;
    if (message.has_state()) state = message.state();
    if (message.cache().reset()) cached.clear();
    cached.insert(message.cache().stored().begin(), message.cache().stored().end());
    for (const uint64_t link : message.cache().evicted()) cached.erase(link);
    for (const v1::SequenceDelta& delta : message.deltas()) Take(delta);
    return true;
  }
  // Reads until all of `sequences` have finished.
  void ReadUntilFinished(const std::vector<uint64_t>& sequences) {
    for (const uint64_t sequence : sequences) {
      while (answers[sequence].last.finish() == v1::FINISH_REASON_UNSPECIFIED) {
        ASSERT_TRUE(Read()) << "the stream ended";
      }
    }
  }
  // How the stream ended; what is left unread is dropped.
  grpc::Status End() {
    context_.TryCancel();
    return AwaitEnd();
  }
  grpc::Status AwaitEnd() {
    while (Read()) {
    }
    const grpc::Status status = stream_->Finish();
    stream_.reset();
    return status;
  }

  std::map<uint64_t, Answer> answers;
  v1::LeaderState state;
  std::set<uint64_t> cached;  // links, as told

 private:
  void Take(const v1::SequenceDelta& delta) {
    Answer& answer = answers[delta.sequence()];
    EXPECT_EQ(answer.last.finish(), v1::FINISH_REASON_UNSPECIFIED) << "news after the end";
    if (delta.finish() != v1::FINISH_REASON_ERROR) {
      EXPECT_EQ(delta.offset(), static_cast<int>(answer.tokens.size()));
    }
    if (delta.prompt_size() > 0) {
      EXPECT_EQ(delta.prompt_offset(), static_cast<int>(answer.prompt.size()) + 1);
    }
    for (const v1::OutputToken& token : delta.tokens()) answer.tokens.push_back(token.id());
    for (const v1::OutputToken& token : delta.prompt()) answer.prompt.push_back(token.id());
    answer.last = delta;
  }

  using Stream = grpc::ClientReaderWriter<v1::RouterMessage, v1::LeaderMessage>;
  static std::unique_ptr<Stream> Connect(v1::Leader::Stub& stub, grpc::ClientContext& context) {
    context.set_wait_for_ready(true);  // on a busy machine a connection may need a second attempt
    return stub.Session(&context);
  }

  grpc::ClientContext context_;
  std::unique_ptr<v1::Leader::Stub> stub_;
  std::unique_ptr<Stream> stream_;
};

// What the health service of the process there says of `service`.
inline int HealthOf(const std::string& address, const std::string& service) {
  const auto stub = grpc::health::v1::Health::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = stub->Check(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status();
}
inline constexpr int kServing = grpc::health::v1::HealthCheckResponse::SERVING;
inline constexpr int kNotServing = grpc::health::v1::HealthCheckResponse::NOT_SERVING;

class WorkerService : public ::testing::Test {
 protected:
  WorkerService() : registry_(std::make_shared<prometheus::Registry>()), metrics_(registry_.get()) {
    options_.server.listen = "127.0.0.1:0";
    options_.model_name = "fake-model";
    options_.drain = kLong;
    options_.join = kLong;
    options_.rejoin = kLong;
    options_.link.retry = milliseconds(5);
    options_.canary.enabled = false;  // most tests count steps
    rank_.engine = SmallEngine();
    rank_.gate = &gate_;
  }
  ~WorkerService() override {
    gate_.Open();
    Stop().IgnoreError();
  }

  void StartLeader() {
    rank_.world = options_.rank.world;
    absl::StatusOr<std::unique_ptr<Leader>> leader = Leader::Start(options_, &metrics_, &pulse_);
    ASSERT_TRUE(leader.ok()) << leader.status();
    leader_ = *std::move(leader);
    serving_ = std::thread([this] {
      served_ =
          leader_->Serve([this] { return std::make_unique<FakeRank>(rank_); }, stop_.get_token());
    });
  }
  // Returns when the group is up.
  void StartAlone() {
    StartLeader();
    AwaitUp();
  }
  void AwaitUp() { AwaitHealth(kServing); }
  void AwaitHealth(int health) {
    while (HealthOf(address(), "facet.v1.Leader") != health) std::this_thread::yield();
  }
  // As at SIGTERM; waits for the end of Serve().
  absl::Status Stop() {
    stop_.request_stop();
    return AwaitServed();
  }
  absl::Status AwaitServed() {
    if (serving_.joinable()) serving_.join();
    return served_;
  }

  FakeRankOptions FollowerRank(int rank) {
    FakeRankOptions options = rank_;
    options.rank = rank;
    options.gate = nullptr;
    return options;
  }
  absl::Status Follow(const FakeRankOptions& rank_options, std::stop_token stop = {}) {
    FakeRank rank(rank_options);
    WorkerOptions options = options_;
    options.rank.rank = rank_options.rank;
    options.rank.world = rank_options.world;
    options.link.leader = address();
    prometheus::Registry registry;
    WorkerMetrics metrics(&registry);
    Pulse pulse;
    return RunFollower(options, &rank, &metrics, &pulse, stop);
  }

  std::string address() const { return leader_->address(); }
  std::string MetricsText() const {
    return prometheus::TextSerializer().Serialize(registry_->Collect());
  }

  // Lets a running sequence take its steps one by one, with the message that each brings, until
  // `sequence` has ended: nobody knows during which step something just sent arrives.
  void StepUntilFinished(Router* router, uint64_t sequence) {
    while (router->answers[sequence].last.finish() == v1::FINISH_REASON_UNSPECIFIED) {
      gate_.Allow(1);
      ASSERT_TRUE(router->Read());
    }
  }

  WorkerOptions options_;
  FakeRankOptions rank_;
  StepGate gate_;
  std::shared_ptr<prometheus::Registry> registry_;
  WorkerMetrics metrics_;
  Pulse pulse_;
  std::stop_source stop_;
  std::unique_ptr<Leader> leader_;
  std::thread serving_;
  absl::Status served_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_WORKER_FIXTURE_H_
