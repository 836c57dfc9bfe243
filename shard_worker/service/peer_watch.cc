#include "shard_worker/service/peer_watch.h"

#include "base/status.h"

namespace facet {
namespace {

double Seconds(TimeUs duration) { return static_cast<double>(duration) * 1e-6; }

}  // namespace

void PeerWatch::Beat(const RankProgress& progress, TimeUs now) {
  heard_ = now;
  if (!progress.in_step || progress.moved != last_.moved || !last_.in_step) moved_ = now;
  last_ = progress;
}

void PeerWatch::Excuse(TimeUs pause) {
  heard_ += pause;
  moved_ += pause;
}

std::optional<Break> PeerWatch::Dead(std::string_view name, TimeUs now) const {
  if (now - heard_ >= options_.silent) {
    return Break{BreakCause::kPeerSilent,
                 Unavailable("{} has been silent for {:.1f} s", name, Seconds(now - heard_))};
  }
  if (last_.in_step && now - moved_ >= options_.stuck) {
    return Break{BreakCause::kPeerStuck, Unavailable("{} has stood still in a step for {:.1f} s",
                                                     name, Seconds(now - moved_))};
  }
  return std::nullopt;
}

}  // namespace facet
