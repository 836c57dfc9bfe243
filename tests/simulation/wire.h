#ifndef FACET_TESTS_SIMULATION_WIRE_H_
#define FACET_TESTS_SIMULATION_WIRE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <memory>

#include "tests/simulation/dice.h"
#include "tests/simulation/stage.h"

namespace facet::sim {

struct WireDelays {
  TimeUs least = 0;
  TimeUs most = 0;         // of a message
  TimeUs notice_most = 0;  // until an end hears that the connection is lost
};

enum class WireEnd { kNear = 0, kFar = 1 };  // kNear: the side that opened it

// One stream between two processes, as gRPC gives it: each direction is in order and exactly-once
// until the stream ends. When the connection breaks, or a process dies, what is under way may be
// lost from some message on, each direction at its own; what was sent before still arrives, and
// only then does the other side hear of it.
class Wire : public std::enable_shared_from_this<Wire> {
 public:
  // `seed` decides the delays.
  Wire(Stage* stage, uint64_t seed, const WireDelays& delays)
      : stage_(stage), dice_(seed, "wire"), delays_(delays) {}

  // What the process at `end` does when the stream has ended without its doing.
  void OnLost(WireEnd end, std::function<void()> lost) { At(end).lost = std::move(lost); }
  // `deliver` runs at the other end, unless that has closed or the message is lost.
  void Send(WireEnd from, std::function<void()> deliver);
  // All that was sent before arrives; then the other end hears of it.
  void Close(WireEnd by);
  // The process at `by` has died.
  void Die(WireEnd by);
  void Break();
  // Nothing arrives before `time`: a partition that heals then.
  void Hold(TimeUs time) { held_until_ = std::max(held_until_, time); }

  // Nothing has been lost of it.
  bool intact() const { return sides_[0].cut == kNever && sides_[1].cut == kNever; }

 private:
  struct Side {
    bool open = true;
    TimeUs last_arrival = 0;  // of the messages to it
    TimeUs cut = kNever;      // what would arrive later is lost
    std::function<void()> lost;
  };
  Side& At(WireEnd end) { return sides_[static_cast<size_t>(end)]; }
  static WireEnd Other(WireEnd end) {
    return end == WireEnd::kNear ? WireEnd::kFar : WireEnd::kNear;
  }
  TimeUs Delay() { return dice_.Low(delays_.least, delays_.most); }
  void Shut(WireEnd end);
  // `end` hears that the stream is over, after what arrives until then.
  void Tell(WireEnd end, TimeUs time);
  void Cut(WireEnd end);

  Stage* stage_;
  Dice dice_;
  const WireDelays delays_;
  std::array<Side, 2> sides_;
  TimeUs held_until_ = 0;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_WIRE_H_
