#ifndef FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_
#define FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.grpc.pb.h"
#include "shard_worker/service/collective.h"
#include "shard_worker/service/peer_watch.h"

namespace facet {

class RankStream;

// facet.v1.Group on the leader: gathers the other ranks for an epoch, and notices when one of them
// goes, falls silent or stands still. A rank's stream lives for one epoch; it comes again for the
// next. Ranks may come before the leader itself is loaded; they are checked when it is.
class GroupService : public v1::Group::CallbackService {
 public:
  GroupService(int world, const BeatOptions& beat);
  ~GroupService() override;

  // What a rank must present, from now on: the leader's own. Its rank is ignored.
  void Expect(const v1::RankMessage::Hello& mine);
  // Waits until every other rank is ready. DeadlineExceeded: some are missing; Cancelled if `stop`
  // was requested.
  absl::Status AwaitRanks(std::chrono::milliseconds timeout, std::stop_token stop);
  // The ranks that are not ready, as text.
  std::string Missing() const;
  // Begins an epoch: asks `make` how the ranks, from rank 1 on, find each other, and tells them to
  // attach. Returns what they were told. Unavailable if a rank has gone meanwhile; else the errors
  // of `make`, which must not call back.
  using MakeStart =
      std::function<absl::StatusOr<v1::GroupMessage::Start>(const std::vector<RankPlace>&)>;
  absl::StatusOr<v1::GroupMessage::Start> Start(const MakeStart& make);
  // Once started: the first loss of a rank is told to `on_lost`, at once if there has been one, on
  // this thread, one of gRPC's or Tick()'s. Null: the ranks are about to be told to stop.
  void OnLost(std::function<void(const Break&)> on_lost);
  // Ends the epoch: the ranks' streams end with `status`, and those who come are for the next one.
  void EndEpoch(const absl::Status& status);
  // Waits until all other ranks have gone, or the timeout.
  void AwaitEnds(std::chrono::milliseconds timeout);
  // Ends what streams there are.
  void EndAll(const absl::Status& status);

  // To be called every BeatOptions::period, by one thread: sends beats, and looks who is dead.
  // `mine`: of rank 0 itself. Returns how long ago each rank last moved.
  std::vector<TimeUs> Tick(const RankProgress& mine, TimeUs now);

 private:
  friend class RankStream;

  grpc::ServerBidiReactor<v1::RankMessage, v1::GroupMessage>* Join(
      grpc::CallbackServerContext* context) override;

  // On gRPC's threads:
  void OnHello(std::shared_ptr<RankStream> stream, const v1::RankMessage::Hello& hello);
  void OnState(const RankStream* stream, const v1::RankMessage::RankState& state);
  void OnGone(const RankStream* stream);

  struct Member {
    std::shared_ptr<RankStream> stream;
    v1::RankMessage::Hello hello;
    bool ready = false;
    std::optional<PeerWatch> watch;  // with a stream
  };
  Member NewMember(std::shared_ptr<RankStream> stream, const v1::RankMessage::Hello& hello) const;
  absl::Status Check(const v1::RankMessage::Hello& hello) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Admit(Member member) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllGone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whom `loss` is to be told, if it is the epoch's first.
  std::function<void(const Break&)> Lose(const Break& loss) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Excuse(TimeUs now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::optional<Break> FindDead(TimeUs now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int world_;
  const BeatOptions beat_;
  mutable absl::Mutex mutex_;
  bool expecting_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  v1::RankMessage::Hello mine_ ABSL_GUARDED_BY(mutex_);
  std::vector<Member> early_ ABSL_GUARDED_BY(mutex_);    // came before Expect()
  std::vector<Member> members_ ABSL_GUARDED_BY(mutex_);  // by rank; the leader's stays empty
  PeerWatch self_ ABSL_GUARDED_BY(mutex_);
  TimeUs last_tick_ ABSL_GUARDED_BY(mutex_);
  // Of the epoch that runs or is being formed:
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_);
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Break> lost_ ABSL_GUARDED_BY(mutex_);  // the first, after the start
  std::function<void(const Break&)> on_lost_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_
