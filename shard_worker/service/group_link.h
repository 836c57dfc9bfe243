#ifndef FACET_SHARD_WORKER_SERVICE_GROUP_LINK_H_
#define FACET_SHARD_WORKER_SERVICE_GROUP_LINK_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <stop_token>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "facet/v1/shard.grpc.pb.h"
#include "shard_worker/service/peer_watch.h"

namespace facet {

struct GroupLinkOptions {
  std::string leader;                         // address of rank 0
  std::chrono::milliseconds patience{30000};  // without a leader that says anything
  std::chrono::milliseconds retry{200};
  BeatOptions beat;
};

// A follower's stream to its leader, for one epoch. A thread of its own, "beat", tells the leader
// that this rank lives and moves, and watches whether the leader does.
class GroupLink {
 public:
  // Any thread, also that of the beats.
  using ProgressOf = std::function<RankProgress()>;

  // Presents `hello`, says that the rank is ready, and waits for the start. Tries again while
  // nobody answers, or whoever does falls silent. Calls `waiting` every 250 ms meanwhile. Errors:
  // the leader's refusal; Unavailable after the patience; Cancelled if `stop` was requested.
  static absl::StatusOr<std::unique_ptr<GroupLink>> Join(const GroupLinkOptions& options,
                                                         const v1::RankMessage::Hello& hello,
                                                         ProgressOf progress,
                                                         const std::function<void()>& waiting,
                                                         std::stop_token stop);
  ~GroupLink();  // leaves
  GroupLink(const GroupLink&) = delete;
  GroupLink& operator=(const GroupLink&) = delete;

  const v1::GroupMessage::Start& start() const { return start_; }
  // Calls `on_end`, on a thread of gRPC, when the stream ends or the leader is given up; at once if
  // that was before. Call once.
  void OnEnd(std::function<void(const Break&)> on_end);
  // Ends the stream, if it has not ended, and waits until it has.
  void Leave();

 private:
  class Stream;
  GroupLink(std::unique_ptr<Stream> stream, const v1::GroupMessage::Start& start);
  std::unique_ptr<Stream> stream_;
  v1::GroupMessage::Start start_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_GROUP_LINK_H_
