#include "shard_worker/service/group_service.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <deque>
#include <random>
#include <utility>

#include "absl/time/time.h"
#include "base/check.h"
#include "base/status.h"
#include "shard_worker/service/clock.h"
#include "shard_worker/service/stream_reactor.h"

namespace facet {
namespace {

uint64_t RandomEpoch() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

}  // namespace

// One rank's stream. The service decides; this writes what it is told.
class RankStream : public StreamReactor<v1::RankMessage, v1::GroupMessage> {
 public:
  RankStream(GroupService* service, std::string peer) : service_(service), peer_(std::move(peer)) {}

  const std::string& peer() const { return peer_; }

  void Send(v1::GroupMessage message) {
    const absl::MutexLock lock(&mutex_);
    if (!live()) return;
    outbox_.push_back(std::move(message));
    Pump();
  }
  // Unless something waits to be written: that says as much.
  void SendBeat(const v1::GroupMessage& beat) {
    const absl::MutexLock lock(&mutex_);
    if (!live() || !outbox_.empty()) return;
    outbox_.push_back(beat);
    Pump();
  }

 private:
  bool Refill(v1::GroupMessage* out) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (outbox_.empty()) return false;
    *out = std::move(outbox_.front());
    outbox_.pop_front();
    return true;
  }

  bool Receive(v1::RankMessage message) override {
    if (message.has_hello() && !std::exchange(said_hello_, true)) {
      service_->OnHello(std::static_pointer_cast<RankStream>(shared_from_this()), message.hello());
    } else if (message.has_state() && said_hello_) {
      service_->OnState(this, message.state());
    } else {
      Finish(InvalidArgument("a rank says hello first, once, and then its state"));
      return false;
    }
    return true;
  }

  void Gone() override {
    service_->OnGone(this);
    Finish(absl::OkStatus());
  }

  GroupService* const service_;
  const std::string peer_;
  bool said_hello_ = false;                                      // of the reading thread
  std::deque<v1::GroupMessage> outbox_ ABSL_GUARDED_BY(mutex_);  // three, at most
};

GroupService::GroupService(int world, const BeatOptions& beat)
    : world_(world),
      beat_(beat),
      members_(static_cast<size_t>(world)),
      self_(beat, SteadyNow()),
      last_tick_(SteadyNow()),
      epoch_(RandomEpoch()) {}

GroupService::~GroupService() = default;

grpc::ServerBidiReactor<v1::RankMessage, v1::GroupMessage>* GroupService::Join(
    grpc::CallbackServerContext* context) {
  const auto stream = std::make_shared<RankStream>(this, context->peer());
  stream->Begin();
  return stream.get();
}

void GroupService::Expect(const v1::RankMessage::Hello& mine) {
  const absl::MutexLock lock(&mutex_);
  expecting_ = true;
  mine_ = mine;
  for (Member& member : std::exchange(early_, {})) Admit(std::move(member));
}

GroupService::Member GroupService::NewMember(std::shared_ptr<RankStream> stream,
                                             const v1::RankMessage::Hello& hello) const {
  return {std::move(stream), hello, false, PeerWatch(beat_, SteadyNow())};
}

void GroupService::OnHello(std::shared_ptr<RankStream> stream,
                           const v1::RankMessage::Hello& hello) {
  const absl::MutexLock lock(&mutex_);
  if (expecting_) {
    Admit(NewMember(std::move(stream), hello));
  } else if (static_cast<int>(early_.size()) < world_) {
    early_.push_back(NewMember(std::move(stream), hello));
  } else {
    stream->Finish(ResourceExhausted("more ranks have come than the group's {}", world_));
  }
}

absl::Status GroupService::Check(const v1::RankMessage::Hello& hello) const {
  if (hello.world() != world_) {
    return FailedPrecondition("world: rank {} was started with {}, the leader with {}",
                              hello.rank(), hello.world(), world_);
  }
  if (hello.rank() < 1 || hello.rank() >= world_) {
    return FailedPrecondition("rank: {} is not in [1, {}), the leader being rank 0", hello.rank(),
                              world_);
  }
  if (hello.model_digest() != mine_.model_digest()) {
    return FailedPrecondition(
        "model: rank {} has a file with digest {:016x}, the leader one with {:016x}", hello.rank(),
        hello.model_digest(), mine_.model_digest());
  }
  if (hello.step_protocol() != mine_.step_protocol()) {
    return FailedPrecondition(
        "build: rank {} speaks version {} of the protocol of a step, the leader version {}; all "
        "ranks of a group must be of the same build",
        hello.rank(), hello.step_protocol(), mine_.step_protocol());
  }
  if (hello.plan_hash() != mine_.plan_hash()) {
    return FailedPrecondition(
        "plan: rank {} has {:016x}, the leader {:016x}; --kv_type, --kv_tokens, --context_tokens, "
        "--step_tokens and --sequences must be the same on all ranks",
        hello.rank(), hello.plan_hash(), mine_.plan_hash());
  }
  const auto& taken = members_[static_cast<size_t>(hello.rank())].stream;
  if (taken != nullptr && started_) {  // it may have died and not be missed yet
    return Unavailable("rank: {} is in the epoch that runs, from {}", hello.rank(), taken->peer());
  }
  return absl::OkStatus();
}

void GroupService::Admit(Member member) {
  if (const absl::Status status = Check(member.hello); !status.ok()) {
    spdlog::warn("refused {}: {}", member.stream->peer(), MessageOf(status));
    member.stream->Finish(status);
    return;
  }
  Member& place = members_[static_cast<size_t>(member.hello.rank())];
  if (place.stream != nullptr) {  // a rank that was started anew, and its old stream lingers
    place.stream->Finish(FailedPrecondition("rank: {} has come anew, from {}", member.hello.rank(),
                                            member.stream->peer()));
  }
  v1::GroupMessage welcome;
  welcome.mutable_welcome()->set_epoch(epoch_);
  member.stream->Send(std::move(welcome));
  place = std::move(member);
}

void GroupService::OnState(const RankStream* stream, const v1::RankMessage::RankState& state) {
  const absl::MutexLock lock(&mutex_);
  for (std::vector<Member>* members : {&early_, &members_}) {
    for (Member& member : *members) {
      if (member.stream.get() != stream) continue;
      member.ready = state.ready();
      member.watch->Beat({state.progress(), state.in_step()}, SteadyNow());
    }
  }
}

void GroupService::OnGone(const RankStream* stream) {
  std::function<void(const Break&)> on_lost;
  Break loss{BreakCause::kPeerGone, absl::OkStatus()};
  {
    const absl::MutexLock lock(&mutex_);
    std::erase_if(early_, [&](const Member& member) { return member.stream.get() == stream; });
    const auto member = std::find_if(members_.begin(), members_.end(), [&](const Member& member) {
      return member.stream.get() == stream;
    });
    if (member == members_.end()) return;
    loss.status = Unavailable("rank {} has gone ({})", member->hello.rank(), stream->peer());
    *member = Member();
    on_lost = Lose(loss);
  }
  if (on_lost) on_lost(loss);
}

std::function<void(const Break&)> GroupService::Lose(const Break& loss) {
  if (!started_ || lost_) return nullptr;
  lost_ = loss;
  return std::exchange(on_lost_, nullptr);
}

bool GroupService::AllReady() const {
  return std::all_of(members_.begin() + 1, members_.end(),
                     [](const Member& member) { return member.ready; });
}

bool GroupService::AllGone() const {
  return std::none_of(members_.begin(), members_.end(),
                      [](const Member& member) { return member.stream != nullptr; });
}

std::string GroupService::Missing() const {
  const absl::MutexLock lock(&mutex_);
  std::vector<int> ranks;
  for (int rank = 1; rank < world_; ++rank) {
    if (!members_[static_cast<size_t>(rank)].ready) ranks.push_back(rank);
  }
  return fmt::format("{}", fmt::join(ranks, ", "));
}

absl::Status GroupService::AwaitRanks(std::chrono::milliseconds timeout, std::stop_token stop) {
  const std::stop_callback on_stop(stop, [this] {
    const absl::MutexLock lock(&mutex_);
    stop_ = true;
  });
  const absl::MutexLock lock(&mutex_);
  const auto settled = [this]()
                           ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return stop_ || AllReady(); };
  mutex_.AwaitWithTimeout(absl::Condition(&settled), absl::FromChrono(timeout));
  if (AllReady()) return absl::OkStatus();
  if (stop_) return MakeStatus(absl::StatusCode::kCancelled, "stopped while ranks were missing");
  return DeadlineExceeded("ranks are missing");
}

absl::StatusOr<v1::GroupMessage::Start> GroupService::Start(const MakeStart& make) {
  const absl::MutexLock lock(&mutex_);
  if (!AllReady()) return Unavailable("a rank has gone before the start");
  std::vector<RankPlace> places;
  for (size_t rank = 1; rank < members_.size(); ++rank) {
    places.push_back({members_[rank].hello, members_[rank].stream->peer()});
  }
  FACET_ASSIGN_OR_RETURN(v1::GroupMessage::Start start, make(places));
  start.set_epoch(epoch_);
  started_ = true;
  v1::GroupMessage message;
  *message.mutable_start() = start;
  for (const Member& member : members_) {
    if (member.stream != nullptr) member.stream->Send(message);
  }
  return start;
}

void GroupService::OnLost(std::function<void(const Break&)> on_lost) {
  std::optional<Break> lost;
  {
    const absl::MutexLock lock(&mutex_);
    lost = lost_;
    on_lost_ = lost ? nullptr : on_lost;
  }
  if (lost && on_lost) on_lost(*lost);
}

void GroupService::EndEpoch(const absl::Status& status) {
  std::vector<Member> members(static_cast<size_t>(world_));
  {
    const absl::MutexLock lock(&mutex_);
    members.swap(members_);
    epoch_ = RandomEpoch();
    started_ = false;
    lost_.reset();
    on_lost_ = nullptr;
  }
  for (const Member& member : members) {
    if (member.stream != nullptr) member.stream->Finish(status);
  }
}

// A process that was stopped, or starved, has heard nobody meanwhile and must not blame others.
void GroupService::Excuse(TimeUs now) {
  const TimeUs pause = now - std::exchange(last_tick_, now) - beat_.period;
  if (pause < 2 * beat_.period) return;
  self_.Excuse(pause);
  for (Member& member : members_) {
    if (member.watch) member.watch->Excuse(pause);
  }
}

// Others before this rank, which may stand still only because it waits for them; what they say is
// up to a beat older than what it knows of itself.
std::optional<Break> GroupService::FindDead(TimeUs now) {
  for (int rank = 1; rank < world_; ++rank) {
    Member& member = members_[static_cast<size_t>(rank)];
    if (!member.watch) continue;
    std::optional<Break> dead = member.watch->Dead(fmt::format("rank {}", rank), now);
    if (!dead) continue;
    if (started_) return dead;
    member.stream->Finish(dead->status);  // not one to begin an epoch with
    member = Member();
  }
  const TimeUs patience = world_ > 1 ? 2 * beat_.period : 0;
  return started_ ? self_.Dead("rank 0", now - patience) : std::nullopt;
}

std::vector<TimeUs> GroupService::Tick(const RankProgress& mine, TimeUs now) {
  v1::GroupMessage beat;
  beat.mutable_beat()->set_progress(mine.moved);
  beat.mutable_beat()->set_in_step(mine.in_step);
  std::vector<TimeUs> ages;
  std::optional<Break> dead;
  std::function<void(const Break&)> on_lost;
  {
    const absl::MutexLock lock(&mutex_);
    Excuse(now);
    self_.Beat(mine, now);
    ages.push_back(self_.Age(now));
    for (const Member& member : early_) member.stream->SendBeat(beat);
    for (size_t rank = 1; rank < members_.size(); ++rank) {
      const Member& member = members_[rank];
      ages.push_back(member.watch ? member.watch->Age(now) : 0);
      if (member.stream != nullptr) member.stream->SendBeat(beat);
    }
    dead = FindDead(now);
    if (dead) on_lost = Lose(*dead);
  }
  if (on_lost) on_lost(*dead);
  return ages;
}

void GroupService::AwaitEnds(std::chrono::milliseconds timeout) {
  const absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(this, &GroupService::AllGone), absl::FromChrono(timeout));
}

void GroupService::EndAll(const absl::Status& status) {
  std::vector<std::shared_ptr<RankStream>> streams;
  {
    const absl::MutexLock lock(&mutex_);
    on_lost_ = nullptr;
    for (const Member& member : early_) streams.push_back(member.stream);
    for (const Member& member : members_) streams.push_back(member.stream);
  }
  for (const auto& stream : streams) {
    if (stream != nullptr) stream->Finish(status);
  }
}

}  // namespace facet
