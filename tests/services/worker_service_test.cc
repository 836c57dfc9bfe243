// The worker's services end to end, in one process and over real gRPC: a leader with a fake rank,
// routers that are plain gRPC clients, and followers on threads.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <array>
#include <chrono>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "facet/v1/shard.grpc.pb.h"
#include "serving/grpc_channel.h"
#include "shard_worker/service/follower.h"
#include "shard_worker/service/group_link.h"
#include "shard_worker/service/leader.h"
#include "tests/base/temp_folder.h"
#include "tests/services/fake_rank.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

EngineOptions SmallEngine() {
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

v1::Submit Submit(uint64_t sequence, int prompt, int max_tokens) {
  v1::Submit submit;
  submit.set_sequence(sequence);
  for (int i = 0; i < prompt; ++i) submit.add_tokens((i * 13 + static_cast<int>(sequence)) % 1000);
  submit.set_prompt_length(prompt);
  submit.set_max_tokens(max_tokens);
  submit.set_seed(sequence * 1000);
  return submit;
}

// What the fake must answer.
std::vector<int32_t> Expected(const v1::Submit& submit, const EngineOptions& options) {
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
      : stub_(v1::Leader::NewStub(MakeChannel(address))), stream_(stub_->Session(&context_)) {}
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
  // Reads one message into the answers. False at the stream's end.
  bool Read() {
    v1::LeaderMessage message;
    if (!stream_->Read(&message)) return false;
    if (message.has_state()) state = message.state();
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

  grpc::ClientContext context_;
  std::unique_ptr<v1::Leader::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::RouterMessage, v1::LeaderMessage>> stream_;
};

// The standard health check, by hand: Debian ships no header for it.
// HealthCheckRequest{string service = 1}, HealthCheckResponse{ServingStatus status = 1}.
int HealthOf(const std::string& address, const std::string& service) {
  grpc::GenericStub stub(MakeChannel(address));
  std::string request = {0x0a, static_cast<char>(service.size())};
  request += service;
  const grpc::Slice slice(request);
  grpc::ByteBuffer question(&slice, 1), answer;
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call =
      stub.PrepareUnaryCall(&context, "/grpc.health.v1.Health/Check", question, &queue);
  call->StartCall();
  grpc::Status status;
  call->Finish(&answer, &status, nullptr);
  void* tag;
  bool ok;
  EXPECT_TRUE(queue.Next(&tag, &ok) && status.ok()) << status.error_message();
  grpc::Slice bytes;
  EXPECT_TRUE(answer.DumpToSingleSlice(&bytes).ok() && bytes.size() == 2);
  return bytes.begin()[1];
}
constexpr int kServing = 1;
constexpr int kNotServing = 2;

class WorkerService : public ::testing::Test {
 protected:
  WorkerService() : registry_(std::make_shared<prometheus::Registry>()), metrics_(registry_.get()) {
    options_.server.listen = "127.0.0.1:0";
    options_.model_name = "fake-model";
    options_.drain = milliseconds(10000);
    options_.join = milliseconds(20000);
    options_.link.retry = milliseconds(5);
    rank_.engine = SmallEngine();
    rank_.gate = &gate_;
  }
  ~WorkerService() override {
    gate_.Open();
    Stop().IgnoreError();
  }

  void StartLeader() {
    rank_.world = options_.rank.world;
    absl::StatusOr<std::unique_ptr<Leader>> leader = Leader::Start(options_, &metrics_);
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
  void AwaitUp() {
    while (HealthOf(address(), "facet.v1.Leader") != kServing) std::this_thread::yield();
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
    return RunFollower(options, &rank, &metrics, stop);
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
  std::stop_source stop_;
  std::unique_ptr<Leader> leader_;
  std::thread serving_;
  absl::Status served_;
};

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
  ASSERT_EQ(answer.last.tokens_size(), 1);
  EXPECT_EQ(answer.last.tokens(0).top_size(), 2);
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
  const TimeUs deadline = SteadyNow() + 40'000;              // and some, for the way
  while (SteadyNow() < deadline) std::this_thread::yield();  // while a step waits at the gate
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
  router.Send({Submit(1, 5, 100)});
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

TEST_F(WorkerService, DrainingFinishesWhatRunsAndTakesNothingNew) {
  gate_.Allow(2);
  StartAlone();
  EXPECT_EQ(HealthOf(address(), ""), kServing);
  Router router(address());
  router.First();
  const v1::Submit running = Submit(1, 5, 30);
  router.Send({running});
  while (router.answers[1].tokens.size() < 2) ASSERT_TRUE(router.Read());
  stop_.request_stop();
  EXPECT_EQ(HealthOf(address(), "facet.v1.Leader"), kNotServing);
  EXPECT_EQ(HealthOf(address(), ""), kNotServing);
  router.Send({Submit(2, 5, 30)});
  StepUntilFinished(&router, 2);
  EXPECT_TRUE(router.state.draining());
  EXPECT_EQ(router.state.credit_tokens(), 0);
  EXPECT_EQ(router.answers[2].last.error_code(), grpc::UNAVAILABLE);
  gate_.Open();
  router.ReadUntilFinished({1});
  EXPECT_EQ(router.answers[1].tokens, Expected(running, rank_.engine));
  EXPECT_EQ(router.AwaitEnd().error_code(), grpc::UNAVAILABLE);
  EXPECT_TRUE(AwaitServed().ok());
}

TEST_F(WorkerService, DrainingEndsWithItsTime) {
  options_.drain = milliseconds(0);
  gate_.Allow(2);
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 1000)});
  while (router.answers[1].tokens.size() < 2) ASSERT_TRUE(router.Read());
  stop_.request_stop();
  gate_.Allow(1);  // for the step that waits
  const grpc::Status status = router.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("shutting down"));
  EXPECT_TRUE(AwaitServed().ok());
}

TEST_F(WorkerService, RoutersWaitUntilTheGroupIsUp) {
  options_.rank.world = 2;
  StartLeader();
  EXPECT_EQ(HealthOf(address(), "facet.v1.Leader"), kNotServing);
  Router router(address());
  const grpc::Status status = router.AwaitEnd();
  EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr("not up"));
  EXPECT_EQ(Stop().code(), absl::StatusCode::kCancelled);
}

TEST_F(WorkerService, GroupOfThreeServesAndStopsCleanly) {
  options_.rank.world = 3;
  StartLeader();
  std::array<absl::Status, 3> followed;
  std::vector<std::thread> followers;
  for (int rank = 1; rank < 3; ++rank) {
    followers.emplace_back([&, rank] { followed[rank] = Follow(FollowerRank(rank)); });
  }
  AwaitUp();
  Router router(address());
  EXPECT_EQ(router.First().ranks(), 3);
  const v1::Submit submit = Submit(1, 100, 50);
  router.Send({submit});
  router.ReadUntilFinished({1});
  EXPECT_EQ(router.answers[1].tokens, Expected(submit, rank_.engine));
  EXPECT_TRUE(Stop().ok());
  for (std::thread& follower : followers) follower.join();
  EXPECT_TRUE(followed[1].ok()) << followed[1];
  EXPECT_TRUE(followed[2].ok()) << followed[2];
}

TEST_F(WorkerService, RanksThatDoNotFitAreRefusedWithBothValues) {
  options_.rank.world = 3;
  StartLeader();
  const auto refusal = [&](auto change) {
    FakeRankOptions options = FollowerRank(1);
    change(&options);
    const absl::Status status = Follow(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    return MessageOf(status);
  };
  using O = FakeRankOptions*;
  EXPECT_THAT(refusal([](O o) { o->digest = 0xab; }),
              HasSubstr("rank 1 has a file with digest 00000000000000ab, the leader one with "
                        "0000000000000001"));
  EXPECT_THAT(refusal([](O o) { o->plan_hash = 0xcd; }),
              HasSubstr("rank 1 has 00000000000000cd, the leader 0000000000000002"));
  EXPECT_THAT(refusal([](O o) { o->world = 2; }),
              HasSubstr("rank 1 was started with 2, the leader with 3"));
  EXPECT_THAT(refusal([](O o) { o->rank = 3; }), HasSubstr("rank: 3 is not in [1, 3)"));
  EXPECT_THAT(refusal([](O o) { o->rank = 0; }), HasSubstr("rank: 0 is not in [1, 3)"));

  const auto stub = v1::Group::NewStub(MakeChannel(address()));
  grpc::ClientContext context;
  const auto first = stub->Join(&context);
  v1::RankMessage hello;
  hello.mutable_hello()->set_rank(1);
  hello.mutable_hello()->set_world(3);
  hello.mutable_hello()->set_model_digest(1);
  hello.mutable_hello()->set_plan_hash(2);
  v1::GroupMessage welcome;
  ASSERT_TRUE(first->Write(hello) && first->Read(&welcome) && welcome.has_welcome());
  EXPECT_THAT(refusal([](O) {}), HasSubstr("rank: 1 is already in the group"));
  context.TryCancel();
  first->Finish();
  EXPECT_EQ(Stop().code(), absl::StatusCode::kCancelled);
}

TEST_F(WorkerService, MissingRanksAreNamed) {
  options_.rank.world = 3;
  options_.join = milliseconds(1);
  StartLeader();
  const absl::Status status = AwaitServed();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(status), HasSubstr("1, 2"));
}

TEST_F(WorkerService, LostRankEndsTheGroupAndItsSessions) {
  options_.rank.world = 3;
  StartLeader();
  std::array<absl::Status, 3> followed;
  FakeRankOptions breaking = FollowerRank(2);
  breaking.breaks_at = 4;
  std::thread a([&] { followed[1] = Follow(FollowerRank(1)); });
  std::thread b([&] { followed[2] = Follow(breaking); });
  AwaitUp();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 900)});
  const grpc::Status session = router.AwaitEnd();
  EXPECT_EQ(session.error_code(), grpc::UNAVAILABLE);
  EXPECT_THAT(session.error_message(), HasSubstr("rank 2 has gone"));
  EXPECT_THAT(MessageOf(AwaitServed()), HasSubstr("rank 2 has gone"));
  a.join();
  b.join();
  EXPECT_FALSE(followed[1].ok());
  EXPECT_THAT(MessageOf(followed[2]), HasSubstr("rank 2 broke"));
}

TEST_F(WorkerService, BrokenLeaderFreesItsFollowers) {
  options_.rank.world = 2;
  rank_.breaks_at = 3;
  StartLeader();
  absl::Status followed;
  std::thread follower([&] {
    FakeRankOptions options = FollowerRank(1);
    options.breaks_at.reset();
    followed = Follow(options);
  });
  AwaitUp();
  Router router(address());
  router.First();
  router.Send({Submit(1, 5, 900)});
  EXPECT_EQ(router.AwaitEnd().error_code(), grpc::UNAVAILABLE);
  EXPECT_EQ(AwaitServed().code(), absl::StatusCode::kInternal);
  follower.join();
  EXPECT_FALSE(followed.ok());
}

TEST_F(WorkerService, FollowerGivesUpWithoutALeader) {
  options_.link.leader = "127.0.0.1:1";
  options_.link.patience = milliseconds(20);
  v1::RankMessage::Hello hello;
  const absl::Status status = GroupLink::Join(options_.link, hello, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(status), HasSubstr("127.0.0.1:1 does not answer"));
}

TEST_F(WorkerService, MetricsTellWhatWasDone) {
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 100, 10)});
  router.ReadUntilFinished({1});
  const std::string text = MetricsText();
  for (const char* line :
       {"facet_worker_prompt_tokens_total 100", "facet_worker_output_tokens_total 10",
        "facet_worker_sequences_total{finish=\"length\"} 1",
        "facet_worker_kv_blocks_used{pool=\"full\"} 0",
        "facet_worker_kv_blocks{pool=\"window\"} 256", "facet_worker_weight_bytes 1000",
        "facet_worker_slice_bytes 900", "facet_worker_kv_bytes 2000",
        "facet_worker_router_streams 1", "facet_worker_step_rows_count 11",
        "facet_worker_step_seconds_count 11", "facet_worker_preemptions_total 0",
        "facet_worker_running_sequences 0", "facet_worker_waiting_sequences 0"}) {
    EXPECT_THAT(text, HasSubstr(std::string(line) + "\n"));
  }
  for (const char* start :
       {"facet_worker_info{", "facet_worker_start_up_seconds{phase=\"load\"}",
        "facet_worker_step_part_seconds_total{part=\"compute\"}",
        "facet_worker_step_part_seconds_total{part=\"collective\"}",
        "facet_worker_step_part_seconds_total{part=\"wait\"}", "facet_worker_steps_total"}) {
    EXPECT_THAT(text, HasSubstr(start));
  }
}

TEST_F(WorkerService, PortInUseIsASentence) {
  StartAlone();
  options_.server.listen = address();
  const absl::Status status = Leader::Start(options_, &metrics_).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(MessageOf(status), HasSubstr(address()));
}

TEST_F(WorkerService, ListensOnAUnixSocketToo) {
  const TempFolder folder;
  options_.server.listen = "unix:" + folder.File("leader.sock");
  StartAlone();
  Router router(address());
  EXPECT_EQ(router.First().model().name(), "fake-model");
}

}  // namespace
}  // namespace facet::testing
