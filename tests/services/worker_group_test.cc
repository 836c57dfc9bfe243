// How a group comes to stand, what it tells, and how it is taken down.

#include <array>
#include <string>
#include <thread>
#include <vector>

#include "shard_worker/runtime/plan_codec.h"
#include "tests/base/temp_folder.h"
#include "tests/services/worker_fixture.h"

namespace facet::testing {
namespace {

TEST_F(WorkerService, DrainingFinishesWhatRunsAndTakesNothingNew) {
  gate_.Allow(2);
  StartAlone();
  EXPECT_EQ(HealthOf(address(), ""), kServing);
  Router router(address());
  router.First();
  const v1::Submit running = Submit(1, 5, 900);
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
  const grpc::Status status = router.AwaitEnd();  // though a step waits
  gate_.Open();
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

TEST_F(WorkerService, ARankOfAnotherBuildIsRefused) {
  options_.rank.world = 2;
  StartLeader();
  const auto stub = v1::Group::NewStub(MakeChannel(address()));
  for (const uint64_t version : {uint64_t{0}, kStepProtocolVersion + 1}) {  // 0: has none
    grpc::ClientContext context;
    context.set_wait_for_ready(true);  // a connection may need a second attempt
    const auto stream = stub->Join(&context);
    v1::RankMessage hello;
    hello.mutable_hello()->set_rank(1);
    hello.mutable_hello()->set_world(2);
    hello.mutable_hello()->set_model_digest(1);
    hello.mutable_hello()->set_plan_hash(2);
    hello.mutable_hello()->set_step_protocol(version);
    ASSERT_TRUE(stream->Write(hello));
    v1::GroupMessage answer;
    while (stream->Read(&answer)) EXPECT_TRUE(answer.has_beat());
    const grpc::Status status = stream->Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(),
                HasSubstr(fmt::format("rank 1 speaks version {} of the protocol of a step, the "
                                      "leader version {}; all ranks of a group must be of the same "
                                      "build",
                                      version, kStepProtocolVersion)));
  }
  EXPECT_EQ(Stop().code(), absl::StatusCode::kCancelled);
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
  context.set_wait_for_ready(true);
  const auto first = stub->Join(&context);
  v1::RankMessage hello;
  hello.mutable_hello()->set_rank(1);
  hello.mutable_hello()->set_world(3);
  hello.mutable_hello()->set_model_digest(1);
  hello.mutable_hello()->set_plan_hash(2);
  hello.mutable_hello()->set_step_protocol(kStepProtocolVersion);
  v1::GroupMessage welcome;
  ASSERT_TRUE(first->Write(hello) && first->Read(&welcome) && welcome.has_welcome());
  v1::GroupMessage beat;
  EXPECT_TRUE(first->Read(&beat) && beat.has_beat());
  // The same rank again, as after a crash that nobody has noticed: the later one counts.
  grpc::ClientContext again;
  again.set_wait_for_ready(true);
  const auto second = stub->Join(&again);
  ASSERT_TRUE(second->Write(hello) && second->Read(&welcome) && welcome.has_welcome());
  while (first->Read(&beat)) {
  }
  EXPECT_THAT(first->Finish().error_message(), HasSubstr("rank: 1 has come anew"));
  again.TryCancel();
  second->Finish();
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

TEST_F(WorkerService, FollowerGivesUpWithoutALeader) {
  options_.link.leader = "127.0.0.1:1";
  options_.link.patience = milliseconds(20);
  v1::RankMessage::Hello hello;
  const absl::Status status = GroupLink::Join(
                                  options_.link, hello, [] { return RankProgress(); }, [] {}, {})
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(MessageOf(status), HasSubstr("127.0.0.1:1 does not answer"));
}

TEST_F(WorkerService, PortInUseIsASentence) {
  StartAlone();
  options_.server.listen = address();
  const absl::Status status = Leader::Start(options_, &metrics_, &pulse_).status();
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

TEST_F(WorkerService, MetricsTellWhatWasDone) {
  StartAlone();
  Router router(address());
  router.First();
  router.Send({Submit(1, 100, 10)});
  router.ReadUntilFinished({1});
  const std::string text = MetricsText();
  for (const char* line : {"facet_worker_prompt_tokens_total 100",
                           "facet_worker_output_tokens_total 10",
                           "facet_worker_sequences_total{finish=\"length\"} 1",
                           "facet_worker_kv_blocks_used{pool=\"full\"} 0",
                           "facet_worker_kv_blocks{pool=\"window\"} 256",
                           "facet_worker_weight_bytes 1000",
                           "facet_worker_slice_bytes 900",
                           "facet_worker_kv_bytes 2000",
                           "facet_worker_router_streams 1",
                           "facet_worker_step_rows_count 11",
                           "facet_worker_step_seconds_count 11",
                           "facet_worker_preemptions_total 0",
                           "facet_worker_cached_prompt_tokens_total 0",
                           "facet_worker_refusals_total{reason=\"queue_full\"} 0",
                           "facet_worker_epoch_breaks_total{cause=\"peer_gone\"} 0",
                           "facet_worker_expired_total{stage=\"waiting\"} 0",
                           "facet_worker_recovery_seconds_count 0",
                           "facet_worker_canaries_total{result=\"wrong\"} 0",
                           "facet_worker_running_sequences 0",
                           "facet_worker_waiting_sequences 0"}) {
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

}  // namespace
}  // namespace facet::testing
