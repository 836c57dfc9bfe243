#ifndef FACET_SHARD_WORKER_SERVICE_PEER_WATCH_H_
#define FACET_SHARD_WORKER_SERVICE_PEER_WATCH_H_

#include <optional>
#include <string_view>

#include "absl/status/status.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"

namespace facet {

// Why an epoch broke.
enum class BreakCause { kPeerGone, kPeerSilent, kPeerStuck, kStepFailed };
inline constexpr int kBreakCauses = 4;

struct Break {
  BreakCause cause = BreakCause::kStepFailed;
  absl::Status status;
};

struct BeatOptions {
  TimeUs period = 250'000;    // between two beats, both ways
  TimeUs silent = 2'000'000;  // no beat for so long: dead
  TimeUs stuck = 2'000'000;   // in a step and not moving for so long: dead
};

// Judges by a rank's beats whether it lives. Sans-IO, not thread-safe.
class PeerWatch {
 public:
  PeerWatch(const BeatOptions& options, TimeUs now) : options_(options), heard_(now), moved_(now) {}

  // Said something without telling its progress.
  void Heard(TimeUs now) { heard_ = now; }
  void Beat(const RankProgress& progress, TimeUs now);
  // The watcher itself has not run for `pause`: the peer may have spoken unheard.
  void Excuse(TimeUs pause);

  // How it died, if it did; `name` begins the sentence.
  std::optional<Break> Dead(std::string_view name, TimeUs now) const;
  // Since its last movement.
  TimeUs Age(TimeUs now) const { return now - moved_; }

 private:
  BeatOptions options_;
  TimeUs heard_;
  TimeUs moved_;  // or was not in a step
  RankProgress last_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_PEER_WATCH_H_
