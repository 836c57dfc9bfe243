#ifndef FACET_KERNELS_COLLECTIVES_ROUNDS_H_
#define FACET_KERNELS_COLLECTIVES_ROUNDS_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/arena.h"
#include "kernels/collectives/call.h"
#include "kernels/collectives/communicator.h"

namespace facet {

// One rank's way through the rounds of an arena. A call of the communicator is a sequence of
// rounds; in a round the rank fills its buffer, enters, and reads the buffers of the peers that it
// has seen entering. Waiting, deadlines, and the comparison of what peers are doing live here.
// Used by the rank's one thread, except for Fail().
class Rounds {
 public:
  // REQUIRES: every rank of the arena has exactly one Rounds.
  Rounds(Arena arena, int rank, const ArenaOptions& options);

  int rank() const { return rank_; }
  int world() const { return arena_.world(); }
  size_t buffer_bytes() const { return arena_.buffer_bytes(); }
  void SetStep(uint64_t step) { step_ = step; }
  void SetTimeout(std::chrono::milliseconds timeout);

  // What the following rounds are about; starts their deadline and clock. Fails if the group has
  // failed.
  absl::Status BeginCall(const CallSubject& subject);
  void EndCall();
  Communicator::Times TakeTimes();
  std::string DescribeCall() const;

  // Waits until nobody reads this rank's next buffer any more.
  absl::Status NextBuffer(std::byte** buffer);
  // Shows the buffer to the peers.
  void Enter();
  // Waits until a peer has entered this rank's round, too.
  absl::Status Await(int peer);
  absl::Status AwaitAll();
  // What an awaited peer has shown, until the next Enter().
  const std::byte* BufferOf(int peer) const { return arena_.buffer(peer, round_); }
  uint64_t SizeOf(int peer) const { return arena_.header(peer, round_).size; }

  // Why the group has failed, or OK.
  absl::Status Look() const;
  // Makes the group fail, as Arena::Fail. Thread-safe.
  absl::Status Fail(absl::StatusCode code, std::string_view message) const {
    return arena_.Fail(code, message);
  }

 private:
  using Clock = std::chrono::steady_clock;

  bool Arrived(uint32_t counter) const;
  bool Settled(uint32_t counter) const;  // nothing to wait for any more
  absl::Status WaitFor(int peer);
  // Both return the counter that they saw last.
  uint32_t Spin(const RankState& state, Clock::time_point begin) const;
  uint32_t Sleep(RankState& state) const;
  absl::Status CheckHeader(int peer) const;
  absl::Status FailLate() const;

  Arena arena_;
  const int rank_;
  const std::chrono::nanoseconds spin_;
  uint64_t step_ = 0;
  std::chrono::milliseconds timeout_{10'000};

  CallHeader header_;  // of the current call
  Clock::time_point call_begin_;
  Clock::time_point deadline_;
  double call_wait_s_ = 0;
  Communicator::Times times_;

  uint32_t round_ = kBeforeFirstRound;  // the last one entered
  std::vector<uint32_t> agreed_;        // by peer: the last round it was seen in, header checked
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_ROUNDS_H_
