#include "shard_worker/service/follower.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <limits>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "shard_worker/runtime/plan_codec.h"
#include "shard_worker/service/clock.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/group_link.h"

namespace facet {
namespace {

constexpr absl::Duration kLookPeriod = absl::Milliseconds(250);
constexpr absl::Duration kLastWord = absl::Milliseconds(100);
// A leader that was told to stop at the same time may take its whole drain time, and then says so.
constexpr TimeUs kAfterDrain = 2'000'000;
// Longer than it takes to give a leader up: standing still for its sake is no fault of this rank.
constexpr TimeUs kRankStuck = 3'500'000;

v1::RankMessage::Hello HelloOf(const WorkerOptions& options, Rank& rank,
                               const CollectiveSeat& seat) {
  v1::RankMessage::Hello hello;
  hello.set_rank(options.rank.rank);
  hello.set_world(options.rank.world);
  hello.set_model_digest(rank.facts().digest);
  hello.set_plan_hash(rank.plan_hash());
  hello.set_step_protocol(kStepProtocolVersion);
  seat.Describe(&hello);
  DescribeDevice(rank.collectives(), &hello);
  return hello;
}

// What ends an epoch, as told by the threads that notice.
struct Ending {
  absl::Mutex mutex;
  std::optional<absl::Status> followed;  // Follow() has returned
  std::optional<Break> link;             // the link has ended
  bool stop = false;
};

// Whether the rank has moved lately.
class Movement {
 public:
  bool Lately(uint64_t moved) {
    const TimeUs now = SteadyNow();
    if (std::exchange(moved_, moved) != moved) at_ = now;
    return now - at_ < kRankStuck;
  }

 private:
  uint64_t moved_ = 0;
  TimeUs at_ = SteadyNow();
};

// Waits for the end of Follow(), telling the metrics what its steps took.
std::optional<Break> AwaitFollowed(Ending* ending, Rank* rank, WorkerMetrics* metrics, Pulse* pulse,
                                   std::chrono::milliseconds drain) {
  std::optional<TimeUs> give_up;
  Movement movement;
  const auto followed = [ending] { return ending->followed.has_value(); };
  const absl::MutexLock lock(&ending->mutex);
  while (!ending->mutex.AwaitWithTimeout(absl::Condition(&followed), kLookPeriod)) {
    if (movement.Lately(rank->progress().moved)) pulse->Beat();
    metrics->AddTimes(rank->TakeTimes());
    if (ending->stop && !give_up) give_up = SteadyNow() + drain.count() * 1000 + kAfterDrain;
    if (give_up && SteadyNow() > *give_up) {
      rank->Abort();
      give_up = std::numeric_limits<TimeUs>::max();
    }
  }
  metrics->AddTimes(rank->TakeTimes());
  if (ending->followed->ok()) return std::nullopt;
  // What the leader says explains more than the collective that it aborted.
  const auto linked = [ending] { return ending->link.has_value(); };
  if (ending->mutex.AwaitWithTimeout(absl::Condition(&linked), kLastWord)) return *ending->link;
  return Break{BreakCause::kStepFailed, *ending->followed};
}

// One epoch. Nothing if the leader said stop.
std::optional<Break> FollowEpoch(const WorkerOptions& options, GroupLink* link, Rank* rank,
                                 WorkerMetrics* metrics, Pulse* pulse, std::stop_token stop) {
  Ending ending;
  link->OnEnd([&ending, rank](const Break& end) {
    {
      const absl::MutexLock lock(&ending.mutex);
      ending.link = end;
      if (ending.followed) return;  // others may still be hearing the leader's last word
    }
    rank->Abort();
  });
  const std::stop_callback on_stop(stop, [&ending] {
    spdlog::info("asked to stop: waiting for the leader's word");
    const absl::MutexLock lock(&ending.mutex);
    ending.stop = true;
  });
  std::thread follow([&ending, rank] {
    pthread_setname_np(pthread_self(), "follow");
    const absl::Status status = rank->Follow();
    const absl::MutexLock lock(&ending.mutex);
    ending.followed = status;
  });
  std::optional<Break> end = AwaitFollowed(&ending, rank, metrics, pulse, options.drain);
  follow.join();
  link->Leave();  // `ending` must outlive its callback
  return end;
}

}  // namespace

absl::Status RunFollower(const WorkerOptions& options, Rank* rank, WorkerMetrics* metrics,
                         Pulse* pulse, std::stop_token stop) {
  const TimeUs loaded = SteadyNow();
  std::optional<TimeUs> broke;
  metrics->SetRank(options.rank.rank, options.rank.world, rank->device_name(), rank->memory());
  while (true) {
    FACET_ASSIGN_OR_RETURN(CollectiveSeat seat,
                           CollectiveSeat::Take(options.collective, options.link.leader));
    FACET_ASSIGN_OR_RETURN(
        const std::unique_ptr<GroupLink> link,
        GroupLink::Join(
            options.link, HelloOf(options, *rank, seat), [rank] { return rank->progress(); },
            [pulse] { pulse->Beat(); }, stop));
    pulse->Rest();  // an attempt has a timeout of its own
    absl::StatusOr<std::unique_ptr<Communicator>> communicator = AttachCollective(
        link->start(), std::move(seat), options.rank.rank, options.rank.world, rank->collectives());
    pulse->Beat();
    if (!communicator.ok()) {
      spdlog::warn("could not attach to the group: {}", MessageOf(communicator.status()));
      continue;  // leaves, and joins again
    }
    rank->Attach(*std::move(communicator));
    if (broke) {
      metrics->AddRecovery(static_cast<double>(SteadyNow() - *broke) * 1e-6);
    } else {
      metrics->SetStartUpPhase("join", static_cast<double>(SteadyNow() - loaded) * 1e-6);
    }
    spdlog::info("joined epoch {:016x} as rank {} of {}, {}", link->start().epoch(),
                 options.rank.rank, options.rank.world, rank->device_name());
    const std::optional<Break> end = FollowEpoch(options, link.get(), rank, metrics, pulse, stop);
    rank->Detach();
    if (!end) return absl::OkStatus();
    broke = SteadyNow();
    metrics->AddBreak(end->cause);
    spdlog::warn("left epoch {:016x}: {}", link->start().epoch(), MessageOf(end->status));
    if (stop.stop_requested()) return end->status;
  }
}

}  // namespace facet
