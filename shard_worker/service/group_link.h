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

namespace facet {

struct GroupLinkOptions {
  std::string leader;                         // address of rank 0
  std::chrono::milliseconds patience{30000};  // without a leader that answers
  std::chrono::milliseconds retry{200};
};

// A follower's stream to its leader: as long as it lives, so does the leader.
class GroupLink {
 public:
  // Presents `hello`, says that the rank is ready, and waits for the start. Tries again while
  // nobody answers. Errors: the leader's refusal; Unavailable after the patience; Cancelled if
  // `stop` was requested.
  static absl::StatusOr<std::unique_ptr<GroupLink>> Join(const GroupLinkOptions& options,
                                                         const v1::RankMessage::Hello& hello,
                                                         std::stop_token stop);
  ~GroupLink();  // leaves
  GroupLink(const GroupLink&) = delete;
  GroupLink& operator=(const GroupLink&) = delete;

  const v1::GroupMessage::Start& start() const { return start_; }
  // Calls `on_end`, on a thread of gRPC, when the stream ends; at once if it has. Call once.
  void OnEnd(std::function<void()> on_end);
  // Ends the stream, if it has not ended, and waits until it has.
  void Leave();

 private:
  class Stream;
  explicit GroupLink(std::unique_ptr<Stream> stream);
  std::unique_ptr<Stream> stream_;
  v1::GroupMessage::Start start_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_GROUP_LINK_H_
