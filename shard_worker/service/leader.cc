#include "shard_worker/service/leader.h"

#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <utility>

#include "base/status.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/convert.h"
#include "shard_worker/service/engine_loop.h"

namespace facet {
namespace {

constexpr char kServiceName[] = "facet.v1.Leader";
// For followers to leave after the word to stop, and for streams to write their last.
constexpr std::chrono::milliseconds kFollowersLeave{5000};
constexpr std::chrono::milliseconds kStreamsEnd{500};

double SecondsSince(TimeUs start) { return static_cast<double>(SteadyNow() - start) * 1e-6; }

v1::RankMessage::Hello HelloOf(const Rank& rank, int world) {
  v1::RankMessage::Hello hello;
  hello.set_world(world);
  hello.set_model_digest(rank.facts().digest);
  hello.set_plan_hash(rank.plan_hash());
  return hello;
}

EngineLoopOptions LoopOptions(const WorkerOptions& options, const Rank& rank) {
  EngineLoopOptions loop;
  loop.engine = rank.engine_options();
  loop.model = ToProto(rank.facts());
  loop.model.set_name(options.model_name);
  loop.ranks = options.rank.world;
  loop.device = rank.device_name();
  loop.allow_logits_digest = options.allow_logits_digest;
  loop.streams_max = options.routers_max;
  loop.drain = options.drain;
  return loop;
}

}  // namespace

Leader::Leader(const WorkerOptions& options, WorkerMetrics* metrics)
    : options_(options),
      metrics_(metrics),
      group_(options.rank.world),
      sessions_(options.session) {}

absl::StatusOr<std::unique_ptr<Leader>> Leader::Start(const WorkerOptions& options,
                                                      WorkerMetrics* metrics) {
  std::unique_ptr<Leader> leader(new Leader(options, metrics));
  grpc::ServerBuilder builder;
  builder.RegisterService(&leader->group_);
  builder.RegisterService(&leader->sessions_);
  FACET_ASSIGN_OR_RETURN(leader->running_, StartGrpcServer(builder, options.server));
  leader->SetServing(false);  // else health calls the service unknown
  return leader;
}

Leader::~Leader() {
  if (running_.server == nullptr) return;
  group_.EndAll(Unavailable("the leader has gone"));
  ShutDown(*running_.server, kStreamsEnd);
}

absl::Status Leader::Serve(const LoadRank& load, std::stop_token stop) {
  const TimeUs start = SteadyNow();
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<Rank> rank, load());
  metrics_->SetStartUpPhase("load", SecondsSince(start));
  metrics_->SetRank(0, options_.rank.world, rank->device_name(), rank->memory());
  const TimeUs loaded = SteadyNow();
  FACET_RETURN_IF_ERROR(FormGroup(rank.get(), stop));
  metrics_->SetStartUpPhase("join", SecondsSince(loaded));

  const std::unique_ptr<Executor> executor = rank->MakeExecutor();
  EngineLoop loop(
      LoopOptions(options_, *rank), executor.get(), [&rank] { return rank->TakeTimes(); },
      metrics_);
  const absl::Status status = RunLoop(rank.get(), &loop, stop);
  // Streams refer to the loop until the server is down.
  group_.EndAll(status);
  ShutDown(*running_.server, kStreamsEnd);
  return status;
}

absl::Status Leader::FormGroup(Rank* rank, std::stop_token stop) {
  group_.Expect(HelloOf(*rank, options_.rank.world));
  FACET_RETURN_IF_ERROR(group_.AwaitRanks(options_.join, stop));
  const v1::GroupMessage::Start start = NewCollective();
  FACET_RETURN_IF_ERROR(group_.Start(start));
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                         AttachCollective(start, 0, options_.rank.world));
  rank->Attach(std::move(communicator));
  return absl::OkStatus();
}

absl::Status Leader::RunLoop(Rank* rank, EngineLoop* loop, std::stop_token stop) {
  group_.OnLost([rank, loop](const absl::Status& status) {
    loop->Fail(status);  // before the collective fails for it
    rank->Abort();
  });
  sessions_.Attach(loop);
  SetServing(true);
  spdlog::info("the group is up: {} rank(s), {}", options_.rank.world, rank->device_name());
  absl::Status status;
  {
    const std::stop_callback on_stop(stop, [this, loop] {
      spdlog::info("draining for up to {} s", options_.drain.count() / 1000);
      SetServing(false);
      loop->Drain();
    });
    status = loop->Run();
  }
  SetServing(false);
  sessions_.Detach();
  group_.OnLost(nullptr);
  if (!status.ok()) {
    rank->Abort();
    return status;
  }
  FACET_RETURN_IF_ERROR(rank->StopFollowers());
  group_.AwaitEnds(kFollowersLeave);
  return absl::OkStatus();
}

void Leader::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = running_.server->GetHealthCheckService();
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

}  // namespace facet
