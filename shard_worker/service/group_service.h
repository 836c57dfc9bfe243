#ifndef FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_
#define FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/shard.grpc.pb.h"

namespace facet {

class RankStream;

// facet.v1.Group on the leader: gathers the other ranks, and notices when one of them goes.
// Ranks may come before the leader itself is loaded; they are checked when it is.
class GroupService : public v1::Group::CallbackService {
 public:
  explicit GroupService(int world);
  ~GroupService() override;

  // What a rank must present, from now on: the leader's own. Its rank is ignored.
  void Expect(const v1::RankMessage::Hello& mine);
  // Waits until every other rank is ready. DeadlineExceeded names those that are missing;
  // Cancelled if `stop` was requested.
  absl::Status AwaitRanks(std::chrono::milliseconds timeout, std::stop_token stop);
  // Tells the ranks to attach. Unavailable if one has gone meanwhile.
  absl::Status Start(const v1::GroupMessage::Start& start);
  // Once started: the first end of a rank's stream is told to `on_lost`, at once if it has been, on
  // this thread or one of gRPC's. Null: the ranks are about to be told to stop, and may go.
  void OnLost(std::function<void(const absl::Status&)> on_lost);
  // Waits until all other ranks have gone, or the timeout.
  void AwaitEnds(std::chrono::milliseconds timeout);
  // Ends what streams there are.
  void EndAll(const absl::Status& status);

 private:
  friend class RankStream;

  grpc::ServerBidiReactor<v1::RankMessage, v1::GroupMessage>* Join(
      grpc::CallbackServerContext* context) override;

  // On gRPC's threads:
  void OnHello(std::shared_ptr<RankStream> stream, const v1::RankMessage::Hello& hello);
  void OnReady(const RankStream* stream);
  void OnGone(const RankStream* stream);

  struct Member {
    std::shared_ptr<RankStream> stream;
    v1::RankMessage::Hello hello;
    bool ready = false;
  };
  absl::Status Check(const v1::RankMessage::Hello& hello) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Admit(Member member) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string Missing() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllReady() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool AllGone() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const int world_;
  const uint64_t epoch_;
  absl::Mutex mutex_;
  bool expecting_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  v1::RankMessage::Hello mine_ ABSL_GUARDED_BY(mutex_);
  std::vector<Member> early_ ABSL_GUARDED_BY(mutex_);    // came before Expect()
  std::vector<Member> members_ ABSL_GUARDED_BY(mutex_);  // by rank; the leader's stays empty
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);  // how the first rank was lost after the start
  bool started_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void(const absl::Status&)> on_lost_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_GROUP_SERVICE_H_
