#include "shard_worker/service/leader.h"

#include <grpcpp/health_check_service_interface.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>
#include <vector>

#include "base/status.h"
#include "serving/short_slices.h"
#include "shard_worker/runtime/plan_codec.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/convert.h"

namespace facet {
namespace {

constexpr char kServiceName[] = "facet.v1.Leader";
// For followers to leave after the word to stop, and for streams to write their last.
constexpr std::chrono::milliseconds kFollowersLeave{5000};
constexpr std::chrono::milliseconds kStreamsEnd{500};
// Between attempts to form a group that fail at once.
constexpr std::chrono::milliseconds kPause{200};
// The engine thread shows that it lives this often while it waits for ranks.
constexpr std::chrono::milliseconds kWaitSlice{250};

double SecondsSince(TimeUs start) { return static_cast<double>(SteadyNow() - start) * 1e-6; }

v1::RankMessage::Hello HelloOf(const Rank& rank, int world) {
  v1::RankMessage::Hello hello;
  hello.set_world(world);
  hello.set_model_digest(rank.facts().digest);
  hello.set_plan_hash(rank.plan_hash());
  hello.set_step_protocol(kStepProtocolVersion);
  return hello;
}

EngineLoopOptions LoopOptions(const WorkerOptions& options, const Rank& rank, uint64_t epoch) {
  EngineLoopOptions loop;
  loop.core.engine = rank.engine_options();
  if (options.steps_max > 0) loop.core.engine.steps_max = options.steps_max;
  loop.core.engine.speculation = options.speculation;
  loop.core.canary = options.canary;
  loop.core.epoch = epoch;
  loop.core.allow_logits_digest = options.allow_logits_digest;
  loop.core.news_period = options.news_period.count();
  loop.core.news_period_max = options.news_period_max.count();
  loop.core.drain = options.drain.count() * 1000;
  loop.model = ToProto(rank.facts());
  loop.model.set_name(options.model_name);
  loop.ranks = options.rank.world;
  loop.device = rank.device_name();
  loop.streams_max = options.routers_max;
  loop.profile = options.rank.profile;
  return loop;
}

}  // namespace

Leader::Leader(const WorkerOptions& options, WorkerMetrics* metrics, Pulse* pulse)
    : options_(options),
      metrics_(metrics),
      pulse_(pulse),
      group_(options.rank.world, options.beat),
      sessions_(options.session) {}

absl::StatusOr<std::unique_ptr<Leader>> Leader::Start(const WorkerOptions& options,
                                                      WorkerMetrics* metrics, Pulse* pulse) {
  std::unique_ptr<Leader> leader(new Leader(options, metrics, pulse));
  grpc::ServerBuilder builder;
  builder.RegisterService(&leader->group_);
  builder.RegisterService(&leader->sessions_);
  {
    const ShortSlices
        slices;  // gRPC starts its threads here, which would wait for those that compute
    FACET_ASSIGN_OR_RETURN(leader->running_, StartGrpcServer(builder, options.server));
  }
  // Else health calls the service unknown.
  leader->running_.server->GetHealthCheckService()->SetServingStatus(kServiceName, false);
  leader->beat_.emplace("beat", options.beat.period, [leader = leader.get()] { leader->Tick(); });
  return leader;
}

Leader::~Leader() {
  beat_.reset();
  if (running_.server == nullptr) return;
  group_.EndAll(Unavailable("the leader has gone"));
  ShutDown(*running_.server, kStreamsEnd);
}

absl::Status Leader::Serve(const LoadRank& load, std::stop_token stop) {
  FACET_RETURN_IF_ERROR(Load(load));
  const absl::Status status = ServeEpochs(stop);
  pulse_->Rest();
  group_.EndAll(status);
  ShutDown(*running_.server, kStreamsEnd);
  return status;
}

absl::Status Leader::Load(const LoadRank& load) {
  const TimeUs start = SteadyNow();
  FACET_ASSIGN_OR_RETURN(rank_, load());
  loaded_ = rank_.get();
  metrics_->SetStartUpPhase("load", SecondsSince(start));
  metrics_->SetRank(0, options_.rank.world, rank_->device_name(), rank_->memory());
  group_.Expect(HelloOf(*rank_, options_.rank.world));
  return absl::OkStatus();
}

absl::Status Leader::ServeEpochs(std::stop_token stop) {
  const TimeUs loaded = SteadyNow();
  TimeUs give_up = loaded + options_.join.count() * 1000;
  for (bool first = true;; first = false) {
    FACET_ASSIGN_OR_RETURN(const uint64_t epoch, FormEpoch(give_up, stop));
    if (first) metrics_->SetStartUpPhase("join", SecondsSince(loaded));
    const EpochEnd end = ServeEpoch(epoch, stop);
    if (end.status.ok()) return LetFollowersGo();
    spdlog::error("{}", MessageOf(end.status));
    group_.EndEpoch(end.status);
    rank_->Detach();
    metrics_->AddBreak(end.cause);
    if (end.condemned || stop.stop_requested()) return end.status;
    // An epoch that never was ready gives no new time: what broke it may break all that follow.
    if (broke_) {
      std::this_thread::sleep_for(kPause);
    } else {
      broke_ = SteadyNow();
      give_up = *broke_ + options_.rejoin.count() * 1000;
    }
  }
}

absl::StatusOr<uint64_t> Leader::FormEpoch(TimeUs give_up, std::stop_token stop) {
  while (true) {
    FACET_RETURN_IF_ERROR(AwaitRanks(give_up, stop));
    absl::StatusOr<uint64_t> epoch = TryAttach();
    if (epoch.ok() || SteadyNow() >= give_up) return epoch;
    spdlog::warn("the group could not be formed: {}", MessageOf(epoch.status()));
    // Ranks that cannot form a group are refused. Others may come again: one that was started anew
    // meanwhile is not to blame for whom this attempt has missed.
    group_.EndEpoch(absl::IsFailedPrecondition(epoch.status())
                        ? epoch.status()
                        : Unavailable("{}", MessageOf(epoch.status())));
    std::this_thread::sleep_for(kPause);
  }
}

absl::Status Leader::AwaitRanks(TimeUs give_up, std::stop_token stop) {
  while (true) {
    pulse_->Beat();
    const TimeUs left = std::max<TimeUs>(0, give_up - SteadyNow());
    const std::chrono::milliseconds slice(std::min<TimeUs>(left / 1000, kWaitSlice.count()));
    const absl::Status status = group_.AwaitRanks(slice, stop);
    if (!absl::IsDeadlineExceeded(status)) return status;
    if (SteadyNow() < give_up) continue;
    return DeadlineExceeded("ranks that have not {} in {} s: {}", stood_ ? "come back" : "joined",
                            (stood_ ? options_.rejoin : options_.join).count() / 1000,
                            group_.Missing());
  }
}

absl::StatusOr<uint64_t> Leader::TryAttach() {
  absl::StatusOr<CollectiveSeat> seat =
      CollectiveSeat::Take(options_.collective, options_.server.listen);
  // No other rank's fault: they may come again.
  if (!seat.ok()) return Unavailable("{}", MessageOf(seat.status()));
  v1::RankMessage::Hello mine;
  seat->Describe(&mine);
  const CollectiveKind kind = options_.collective.kind;
  // NCCL is opened where it may be used.
  const bool may_use_nccl = kind == CollectiveKind::kAuto || kind == CollectiveKind::kNccl;
  if (may_use_nccl && options_.rank.world > 1) DescribeDevice(rank_->collectives(), &mine);
  std::string obstacle;
  FACET_ASSIGN_OR_RETURN(const v1::GroupMessage::Start start,
                         group_.Start([&](const std::vector<RankPlace>& others) {
                           obstacle = NcclObstacle(mine, others);
                           return NewCollective(kind, mine, others);
                         }));
  pulse_->Rest();  // the attempt has a timeout of its own
  absl::StatusOr<std::unique_ptr<Communicator>> communicator =
      AttachCollective(start, *std::move(seat), 0, options_.rank.world, rank_->collectives());
  pulse_->Beat();
  FACET_RETURN_IF_ERROR(communicator.status());
  if (options_.rank.world > 1) {
    spdlog::info("the ranks are attached over {}{}", start.nccl() ? "nccl beside " : "",
                 start.collective());
    if (rank_->collectives() != nullptr && !start.nccl()) {
      spdlog::info("the devices exchange data through their hosts: {}",
                   may_use_nccl ? obstacle : "as --collective says");
    }
  }
  rank_->Attach(*std::move(communicator));
  return start.epoch();
}

EpochEnd Leader::ServeEpoch(uint64_t epoch, std::stop_token stop) {
  const auto loop =
      std::make_shared<EngineLoop>(LoopOptions(options_, *rank_, epoch), canary_, rank_.get(),
                                   metrics_, pulse_, [this](bool ready) { OnReady(ready); });
  // Weak: the callback may outlive the epoch that it was made for.
  group_.OnLost([weak = std::weak_ptr(loop)](const Break& loss) {
    if (const auto loop = weak.lock()) loop->Fail(loss);
  });
  SetLoop(loop);
  sessions_.Attach(loop);
  EpochEnd end;
  {
    const std::stop_callback on_stop(stop, [this, loop] {
      spdlog::info("draining for up to {} s", options_.drain.count() / 1000);
      loop->Drain();
      UpdateHealth();
    });
    end = loop->Run();
  }
  canary_ = loop->canary_answer();
  sessions_.Attach(nullptr);
  SetLoop(nullptr);
  group_.OnLost(nullptr);
  return end;
}

absl::Status Leader::LetFollowersGo() {
  pulse_->Rest();  // both have timeouts of their own
  FACET_RETURN_IF_ERROR(rank_->StopFollowers());
  group_.AwaitEnds(kFollowersLeave);
  return absl::OkStatus();
}

// On the engine thread.
void Leader::OnReady(bool ready) {
  UpdateHealth();
  if (!ready) return;
  stood_ = true;
  if (broke_) metrics_->AddRecovery(SecondsSince(*broke_));
  broke_.reset();
  spdlog::info("the group is up: {} rank(s), {}", options_.rank.world, rank_->device_name());
}

// On the thread of the beats.
void Leader::Tick() {
  Rank* const rank = loaded_;
  const std::vector<TimeUs> ages =
      group_.Tick(rank != nullptr ? rank->progress() : RankProgress(), SteadyNow());
  metrics_->SetStepAges(ages);
  UpdateHealth();
}

void Leader::SetLoop(std::shared_ptr<EngineLoop> loop) {
  {
    const absl::MutexLock lock(&health_mutex_);
    loop_ = std::move(loop);
  }
  UpdateHealth();
}

void Leader::UpdateHealth() {
  const absl::MutexLock lock(&health_mutex_);
  const bool serving = loop_ != nullptr && SteadyNow() < loop_->ready_until();
  if (std::exchange(serving_, serving) == serving) return;
  grpc::HealthCheckServiceInterface* health = running_.server->GetHealthCheckService();
  if (!serving) spdlog::info("not ready");
  health->SetServingStatus("", serving);
  health->SetServingStatus(kServiceName, serving);
}

}  // namespace facet
