// What a group does when one of its ranks is lost.

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/synchronization/notification.h"
#include "shard_worker/runtime/plan_codec.h"
#include "shard_worker/service/collective.h"
#include "tests/services/worker_fixture.h"

namespace facet::testing {
namespace {

using ::testing::AnyOf;

// A rank that joins by hand, may attach, and then does nothing more.
class MuteRank {
 public:
  MuteRank(const std::string& leader, int rank, int world, bool attaches = true)
      : stub_(v1::Group::NewStub(MakeChannel(leader))), stream_(Join()) {
    absl::StatusOr<CollectiveSeat> seat = CollectiveSeat::Take({}, leader);
    EXPECT_TRUE(seat.ok()) << seat.status();
    v1::RankMessage message;
    seat->Describe(message.mutable_hello());
    message.mutable_hello()->set_rank(rank);
    message.mutable_hello()->set_world(world);
    message.mutable_hello()->set_model_digest(1);
    message.mutable_hello()->set_plan_hash(2);
    message.mutable_hello()->set_step_protocol(kStepProtocolVersion);
    stream_->Write(message);
    message.mutable_state()->set_ready(true);
    stream_->Write(message);
    v1::GroupMessage answer;
    while (stream_->Read(&answer) && !answer.has_start()) {
    }
    if (!attaches) return;
    absl::StatusOr<std::unique_ptr<Communicator>> communicator =
        AttachCollective(answer.start(), *std::move(seat), rank, world, nullptr);
    EXPECT_TRUE(communicator.ok()) << communicator.status();
    communicator_ = *std::move(communicator);
  }
  // Until the leader ends it.
  grpc::Status AwaitEnd() {
    v1::GroupMessage message;
    while (stream_->Read(&message)) {
    }
    return stream_->Finish();
  }

 private:
  using Stream = grpc::ClientReaderWriter<v1::RankMessage, v1::GroupMessage>;
  std::unique_ptr<Stream> Join() {
    context_.set_wait_for_ready(true);  // a connection may need a second attempt
    return stub_->Join(&context_);
  }

  grpc::ClientContext context_;
  std::unique_ptr<v1::Group::Stub> stub_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Communicator> communicator_;
};

// A leader that takes every rank in, may start it, and never says anything again.
class MuteLeader : public v1::Group::Service {
 public:
  explicit MuteLeader(bool starts) : starts_(starts) {
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    server_ = builder.BuildAndStart();
    address_ = fmt::format("127.0.0.1:{}", port);
  }
  ~MuteLeader() override { server_->Shutdown(); }

  const std::string& address() const { return address_; }
  int joined() const { return joined_; }

 private:
  grpc::Status Join(grpc::ServerContext*,
                    grpc::ServerReaderWriter<v1::GroupMessage, v1::RankMessage>* stream) override {
    ++joined_;
    v1::GroupMessage message;
    message.mutable_welcome()->set_epoch(1);
    stream->Write(message);
    message.mutable_start()->set_epoch(1);
    if (starts_) stream->Write(message);
    v1::RankMessage ignored;
    while (stream->Read(&ignored)) {
    }
    return grpc::Status::OK;
  }

  const bool starts_;
  std::atomic<int> joined_ = 0;
  std::string address_;
  std::unique_ptr<grpc::Server> server_;
};

class WorkerEpoch : public WorkerService {
 protected:
  WorkerEpoch() {
    options_.beat.period = 10'000;
    options_.link.beat.period = 10'000;
  }
  // A stream that the leader ends with the epoch.
  std::string EndOfSession(Router* router) {
    const grpc::Status status = router->AwaitEnd();
    EXPECT_EQ(status.error_code(), grpc::UNAVAILABLE);
    return status.error_message();
  }
  // The group gives right answers, though it may still be about to stand.
  void ExpectServing() {
    AwaitUp();
    Router router(address());
    router.First();
    const v1::Submit submit = Submit(3, 40, 20);
    router.Send({submit});
    router.ReadUntilFinished({3});
    EXPECT_EQ(router.answers[3].tokens, Expected(submit, rank_.engine));
  }
};

TEST_F(WorkerEpoch, LostRankEndsTheSessionsAndTheGroupStandsAgain) {
  options_.rank.world = 3;
  StartLeader();
  std::array<absl::Status, 3> followed;
  FakeRankOptions breaking = FollowerRank(2);
  breaking.breaks_at = 4;
  std::thread a([&] { followed[1] = Follow(FollowerRank(1)); });
  std::thread b([&] { followed[2] = Follow(breaking); });
  AwaitUp();
  Router router(address());
  const uint64_t epoch = router.First().epoch();
  router.Send({Submit(1, 5, 900)});
  EXPECT_THAT(EndOfSession(&router), HasSubstr(fmt::format("epoch {:016x} broke: ", epoch)));
  ExpectServing();
  Router again(address());
  EXPECT_NE(again.First().epoch(), epoch);
  EXPECT_THAT(MetricsText(), HasSubstr("facet_worker_recovery_seconds_count 1"));
  EXPECT_TRUE(Stop().ok());
  a.join();
  b.join();
  EXPECT_TRUE(followed[1].ok()) << followed[1];
  EXPECT_TRUE(followed[2].ok()) << followed[2];
}

TEST_F(WorkerEpoch, LeaderThatBreaksStandsAgainWithItsFollowers) {
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
  EXPECT_THAT(EndOfSession(&router), HasSubstr("rank 0 broke"));
  ExpectServing();
  EXPECT_THAT(MetricsText(),
              HasSubstr("facet_worker_epoch_breaks_total{cause=\"step_failed\"} 1\n"));
  EXPECT_TRUE(Stop().ok());
  follower.join();
  EXPECT_TRUE(followed.ok()) << followed;
}

TEST_F(WorkerEpoch, RankThatGoesIsWaitedForAndAnotherProcessMayTakeItsPlace) {
  options_.rank.world = 2;
  options_.beat.silent = 120'000'000;  // it never says a word
  StartLeader();
  std::optional<MuteRank> first;
  first.emplace(address(), 1, 2);
  AwaitUp();
  Router router(address());
  router.First();
  first.reset();
  EXPECT_THAT(EndOfSession(&router), HasSubstr("rank 1 has gone"));
  AwaitHealth(kNotServing);
  Router refused(address());
  // The epoch that broke may still be on its way out.
  EXPECT_THAT(EndOfSession(&refused), AnyOf(HasSubstr("not up"), HasSubstr("rank 1 has gone")));
  std::thread follower([&] { EXPECT_TRUE(Follow(FollowerRank(1)).ok()); });
  ExpectServing();
  EXPECT_TRUE(Stop().ok());
  follower.join();
}

TEST_F(WorkerEpoch, RankThatStaysAwayEndsTheProcess) {
  options_.rank.world = 2;
  options_.rejoin = milliseconds(1);
  options_.beat.silent = 120'000'000;  // it never says a word
  StartLeader();
  std::optional<MuteRank> rank;
  rank.emplace(address(), 1, 2);
  AwaitUp();
  rank.reset();
  const absl::Status status = AwaitServed();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(MessageOf(status), HasSubstr("have not come back in 0 s: 1"));
}

TEST_F(WorkerEpoch, SilentRankIsGivenUp) {
  options_.rank.world = 2;
  StartLeader();
  MuteRank mute(address(), 1, 2);
  AwaitUp();
  Router router(address());
  router.First();
  EXPECT_THAT(EndOfSession(&router), HasSubstr("rank 1 has been silent for "));
  EXPECT_EQ(mute.AwaitEnd().error_code(), grpc::UNAVAILABLE);
  std::thread follower([&] { EXPECT_TRUE(Follow(FollowerRank(1)).ok()); });
  ExpectServing();
  EXPECT_THAT(MetricsText(),
              HasSubstr("facet_worker_epoch_breaks_total{cause=\"peer_silent\"} 1\n"));
  EXPECT_TRUE(Stop().ok());
  follower.join();
}

TEST_F(WorkerEpoch, RankThatStandsStillIsGivenUpThoughItSpeaks) {
  options_.rank.world = 2;
  // The leader waits for rank 1 and stands still as long: two beats are what tells them apart.
  options_.beat.period = options_.link.beat.period = 500'000;
  options_.beat.stuck = 600'000;
  StartLeader();
  StepGate stuck;
  std::thread follower([&] {
    FakeRankOptions options = FollowerRank(1);
    options.stuck = &stuck;
    EXPECT_TRUE(Follow(options).ok());
  });
  AwaitUp();
  Router router(address());
  router.First();
  stuck.Allow(3);
  router.Send({Submit(1, 5, 900)});
  EXPECT_THAT(EndOfSession(&router), HasSubstr("rank 1 has stood still in a step for "));
  stuck.Open();
  ExpectServing();
  EXPECT_TRUE(Stop().ok());
  follower.join();
}

TEST_F(WorkerEpoch, LeaderThatStandsStillEndsItsSessionsMeanwhile) {
  options_.beat.stuck = 300'000;
  StepGate stuck;
  rank_.stuck = &stuck;
  StartAlone();
  Router router(address());
  router.First();
  stuck.Allow(3);
  router.Send({Submit(1, 5, 900)});
  EXPECT_THAT(EndOfSession(&router), HasSubstr("rank 0 has stood still in a step for "));
  EXPECT_EQ(HealthOf(address(), ""), kNotServing);
  stuck.Open();
  ExpectServing();
  EXPECT_TRUE(Stop().ok());  // before `stuck` goes
}

TEST_F(WorkerEpoch, FollowerGivesASilentLeaderUp) {
  MuteLeader leader(/*starts=*/true);
  options_.link.leader = leader.address();
  options_.link.beat.silent = 200'000;
  const absl::StatusOr<std::unique_ptr<GroupLink>> link = GroupLink::Join(
      options_.link, {}, [] { return RankProgress(); }, [] {}, {});
  ASSERT_TRUE(link.ok()) << link.status();
  absl::Notification ended;
  Break end;
  (*link)->OnEnd([&](const Break& how) {
    end = how;
    ended.Notify();
  });
  ended.WaitForNotification();
  EXPECT_EQ(end.cause, BreakCause::kPeerSilent);
  EXPECT_THAT(MessageOf(end.status), HasSubstr("the leader has been silent for "));
}

TEST_F(WorkerEpoch, FollowerTriesAgainWhereNobodyGoesOn) {
  MuteLeader leader(/*starts=*/false);
  options_.link.leader = leader.address();
  options_.link.beat.silent = 50'000;
  std::stop_source stop;
  const absl::Status status = GroupLink::Join(
                                  options_.link, {}, [] { return RankProgress(); },
                                  [&] {
                                    if (leader.joined() >= 3) stop.request_stop();
                                  },
                                  stop.get_token())
                                  .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_GE(leader.joined(), 3);
}

TEST_F(WorkerEpoch, RankThatComesDuringAnAttemptThatFailsIsThereForTheNext) {
  options_.rank.world = 2;
  StartLeader();
  // The leader waits for it to attach, in vain.
  MuteRank(address(), 1, 2, /*attaches=*/false);
  std::thread follower([&] { EXPECT_TRUE(Follow(FollowerRank(1)).ok()); });
  ExpectServing();
  EXPECT_TRUE(Stop().ok());
  follower.join();
}

}  // namespace
}  // namespace facet::testing
