#ifndef FACET_KERNELS_COLLECTIVES_EXCHANGE_H_
#define FACET_KERNELS_COLLECTIVES_EXCHANGE_H_

#include <poll.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "kernels/collectives/call.h"
#include "kernels/collectives/communicator.h"
#include "kernels/collectives/peer_link.h"

namespace facet {

struct ExchangeOptions {
  // How long a call that nothing happens to looks again and again before it sleeps.
  std::chrono::microseconds spin{50};
  size_t message_bytes_max = size_t{256} << 20;
  // How long a rank that fails tries to finish the frames it has begun, behind which it says why,
  // and how long it waits at its end until the peers have heard it.
  std::chrono::milliseconds last_words{50};
};

// One rank's connections to all its peers, driven together: a call says what it sends to whom and
// what it wants from whom, and Run() moves both ways at once, whatever comes first, so that no two
// ranks wait for each other to read. Waiting, deadlines, failing and the comparison of what peers
// are doing live here. Used by one thread at a time, except for Interrupt().
class Exchange {
 public:
  // `sockets` by rank, the own one empty.
  Exchange(int rank, std::vector<UniqueFd> sockets, const ExchangeOptions& options);
  ~Exchange();

  int rank() const { return rank_; }
  int world() const { return static_cast<int>(links_.size()); }
  void SetStep(uint64_t step) { step_ = step; }
  void SetTimeout(std::chrono::milliseconds timeout);

  // What the following is about; starts its deadline and clock. Fails if the rank has failed.
  absl::Status BeginCall(const CallSubject& subject);
  void EndCall();
  // Between calls: whether the rank has failed, or a peer has said that it has, or a peer is gone:
  // that alone fails nothing, for it may be done.
  absl::Status Look();
  Communicator::Times TakeTimes();

  // Between two Run(): one frame to and one from each peer, at most. What is sent and where it goes
  // must live until Run() returns.
  void Send(int peer, std::span<const iovec> parts);
  void Want(int peer, std::span<std::byte> place);
  // As long as the peer says, up to message_bytes_max.
  void WantMessage(int peer, std::vector<std::byte>* message);
  // Until all is sent and all that is wanted is there.
  absl::Status Run();

  absl::Status CheckMessageSize(int sender, uint64_t bytes);

  // The rank fails, unless it has already, and tells its peers why. Returns the first failure.
  absl::Status Fail(absl::StatusCode code, std::string_view message);
  absl::Status FailAborted();
  // Makes a call that is under way return FailAborted(), and every later one. Any thread.
  void Interrupt();

 private:
  using Clock = std::chrono::steady_clock;

  struct Wish {
    bool open = false;
    bool placed = false;  // its frame has begun
    std::span<std::byte> place;
    std::vector<std::byte>* message = nullptr;  // instead of a place
  };

  void AddWish(int peer, Wish wish);
  bool Done() const { return wishes_open_ == 0 && sends_open_ == 0; }
  uint64_t Moved() const;
  absl::Status Move();
  absl::Status Push(int peer);
  absl::Status Pull(int peer);
  absl::Status Judge(int peer);  // the header that the peer has sent
  // Nothing has moved: looks at the clock and at Interrupt(), and sleeps when it has spun enough.
  absl::Status Idle();
  absl::Status Sleep(Clock::time_point now);
  void EndIdle();
  void FinishFrames();
  void AwaitHearers();
  absl::Status FailLate();
  absl::Status FailGone(int peer);

  const int rank_;
  const ExchangeOptions options_;
  std::chrono::nanoseconds spin_;
  std::vector<PeerLink> links_;
  std::vector<Wish> wishes_;
  int wishes_open_ = 0;
  int sends_open_ = 0;
  absl::Status failure_;

  uint64_t step_ = 0;
  std::chrono::milliseconds timeout_{10'000};
  CallHeader call_;
  Clock::time_point call_begin_;
  Clock::time_point deadline_;
  Clock::time_point idle_since_;  // while idle_
  bool idle_ = false;
  double call_wait_s_ = 0;
  Communicator::Times times_;

  UniqueFd wake_;  // an eventfd that a sleeper polls
  std::atomic<bool> interrupted_{false};
  std::vector<pollfd> polled_;  // kept for their capacity
  std::vector<int> polled_ranks_;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_EXCHANGE_H_
