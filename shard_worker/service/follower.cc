#include "shard_worker/service/follower.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/group_link.h"

namespace facet {
namespace {

constexpr absl::Duration kMetricsPeriod = absl::Seconds(1);

v1::RankMessage::Hello HelloOf(const WorkerOptions& options, const Rank& rank) {
  v1::RankMessage::Hello hello;
  hello.set_rank(options.rank.rank);
  hello.set_world(options.rank.world);
  hello.set_model_digest(rank.facts().digest);
  hello.set_plan_hash(rank.plan_hash());
  return hello;
}

// What ends a follower, as told by the threads that notice.
struct Ending {
  absl::Mutex mutex;
  std::optional<absl::Status> followed;  // Follow() has returned
  bool leader_gone = false;
  bool stop = false;
};

// Waits for the end of Follow(), telling the metrics what its steps took.
absl::Status AwaitFollowed(Ending* ending, Rank* rank, WorkerMetrics* metrics,
                           std::chrono::milliseconds drain) {
  std::optional<absl::Time> give_up;
  const auto followed = [ending] { return ending->followed.has_value(); };
  const absl::MutexLock lock(&ending->mutex);
  while (!ending->mutex.AwaitWithTimeout(absl::Condition(&followed), kMetricsPeriod)) {
    metrics->AddTimes(rank->TakeTimes());
    if (ending->stop && !give_up) give_up = absl::Now() + absl::FromChrono(drain);
    if (give_up && absl::Now() > *give_up) {
      rank->Abort();
      give_up = absl::InfiniteFuture();
    }
  }
  metrics->AddTimes(rank->TakeTimes());
  if (ending->followed->ok()) return absl::OkStatus();
  if (ending->leader_gone) return Unavailable("the leader has gone");
  return Annotate(*ending->followed, "the group has broken");
}

}  // namespace

absl::Status RunFollower(const WorkerOptions& options, Rank* rank, WorkerMetrics* metrics,
                         std::stop_token stop) {
  const absl::Time loaded = absl::Now();
  metrics->SetRank(options.rank.rank, options.rank.world, rank->device_name(), rank->memory());
  FACET_ASSIGN_OR_RETURN(const std::unique_ptr<GroupLink> link,
                         GroupLink::Join(options.link, HelloOf(options, *rank), stop));
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> communicator,
                         AttachCollective(link->start(), options.rank.rank, options.rank.world));
  rank->Attach(std::move(communicator));
  metrics->SetStartUpPhase("join", absl::ToDoubleSeconds(absl::Now() - loaded));
  spdlog::info("joined the group as rank {} of {}, {}", options.rank.rank, options.rank.world,
               rank->device_name());

  Ending ending;
  link->OnEnd([&ending, rank] {
    {
      const absl::MutexLock lock(&ending.mutex);
      if (ending.followed) return;  // others may still be hearing the leader's last word
      ending.leader_gone = true;
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
  const absl::Status status = AwaitFollowed(&ending, rank, metrics, options.drain);
  follow.join();
  link->Leave();
  return status;
}

}  // namespace facet
