#include "kernels/collectives/rounds.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/futex.h"

namespace facet {
namespace {

// So that deadlines do not overflow: longer than anyone waits.
constexpr std::chrono::milliseconds kTimeoutMax = std::chrono::hours(24 * 365);
// Looks at a counter between two looks at the clock.
constexpr int kSpinsPerLook = 32;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool HasFailed(uint32_t counter) { return (counter & kFailedBit) != 0; }

std::chrono::nanoseconds SpinFor(const ArenaOptions& options, int world) {
  if (sysconf(_SC_NPROCESSORS_ONLN) < world) return std::chrono::nanoseconds(0);
  return options.spin;
}

double Seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Rounds::Rounds(Arena arena, int rank, const ArenaOptions& options)
    : arena_(std::move(arena)),
      rank_(rank),
      spin_(SpinFor(options, arena_.world())),
      agreed_(static_cast<size_t>(arena_.world()), kBeforeFirstRound) {
  FACET_CHECK(rank >= 0 && rank < arena_.world(), "rank {} of {}", rank, arena_.world());
}

void Rounds::SetTimeout(std::chrono::milliseconds timeout) {
  timeout_ = std::min(timeout, kTimeoutMax);
}

absl::Status Rounds::BeginCall(const CallSubject& subject) {
  call_begin_ = Clock::now();
  call_wait_s_ = 0;
  deadline_ = call_begin_ + timeout_;
  header_ = HeaderOf(subject, step_);
  return Look();
}

absl::Status Rounds::Look() const {
  const uint32_t counter = arena_.rank(rank_).rounds.load(std::memory_order_acquire);
  return HasFailed(counter) ? arena_.Failure() : absl::OkStatus();
}

void Rounds::EndCall() {
  times_.wait_s += call_wait_s_;
  times_.work_s += Seconds(Clock::now() - call_begin_) - call_wait_s_;
}

Communicator::Times Rounds::TakeTimes() { return std::exchange(times_, Communicator::Times{}); }

std::string Rounds::DescribeCall() const { return Describe(header_); }

// A peer that has entered round_ has left the one before, in which it read the buffer that is
// now written.
absl::Status Rounds::NextBuffer(std::byte** buffer) {
  FACET_RETURN_IF_ERROR(AwaitAll());
  *buffer = arena_.buffer(rank_, round_ + kRoundStep);
  return absl::OkStatus();
}

void Rounds::Enter() {
  round_ += kRoundStep;
  arena_.header(rank_, round_) = header_;
  arena_.EnterRound(rank_);
}

absl::Status Rounds::AwaitAll() {
  for (int peer = 0; peer < world(); ++peer) {
    if (peer != rank_) FACET_RETURN_IF_ERROR(Await(peer));
  }
  return absl::OkStatus();
}

absl::Status Rounds::Await(int peer) {
  if (agreed_[peer] == round_) return absl::OkStatus();
  const uint32_t counter = arena_.rank(peer).rounds.load(std::memory_order_acquire);
  if (HasFailed(counter) || !Arrived(counter)) FACET_RETURN_IF_ERROR(WaitFor(peer));
  FACET_RETURN_IF_ERROR(CheckHeader(peer));
  agreed_[peer] = round_;
  return absl::OkStatus();
}

bool Rounds::Arrived(uint32_t counter) const {
  return static_cast<int32_t>((counter & ~kFailedBit) - round_) >= 0;
}

bool Rounds::Settled(uint32_t counter) const { return HasFailed(counter) || Arrived(counter); }

absl::Status Rounds::WaitFor(int peer) {
  RankState& state = arena_.rank(peer);
  const Clock::time_point begin = Clock::now();
  uint32_t counter = Spin(state, begin);
  if (!Settled(counter)) counter = Sleep(state);
  call_wait_s_ += Seconds(Clock::now() - begin);
  if (HasFailed(counter)) return arena_.Failure();
  return Arrived(counter) ? absl::OkStatus() : FailLate();
}

uint32_t Rounds::Spin(const RankState& state, Clock::time_point begin) const {
  const Clock::time_point end = std::min(begin + spin_, deadline_);
  uint32_t counter;
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      counter = state.rounds.load(std::memory_order_acquire);
      if (Settled(counter)) return counter;
      Pause();
    }
  } while (Clock::now() < end);
  return counter;
}

uint32_t Rounds::Sleep(RankState& state) const {
  state.sleepers.fetch_add(1, std::memory_order_seq_cst);  // see Arena::EnterRound
  uint32_t counter = state.rounds.load(std::memory_order_seq_cst);
  while (!Settled(counter)) {
    const std::chrono::nanoseconds left = deadline_ - Clock::now();
    if (left <= std::chrono::nanoseconds(0)) break;
    FutexWait(state.rounds, counter, left);
    counter = state.rounds.load(std::memory_order_seq_cst);
  }
  state.sleepers.fetch_sub(1, std::memory_order_relaxed);
  return counter;
}

absl::Status Rounds::FailLate() const {
  std::vector<int> late;
  for (int peer = 0; peer < world(); ++peer) {
    const uint32_t counter = arena_.rank(peer).rounds.load(std::memory_order_acquire);
    if (peer != rank_ && !Arrived(counter)) late.push_back(peer);
  }
  return arena_.Fail(absl::StatusCode::kDeadlineExceeded,
                     fmt::format("rank{} {} did not arrive at {} within {} ms (rank {} waited)",
                                 late.size() > 1 ? "s" : "", fmt::join(late, ", "),
                                 Describe(arena_.header(rank_, round_)), timeout_.count(), rank_));
}

absl::Status Rounds::CheckHeader(int peer) const {
  const std::string difference =
      DifferenceOf(peer, arena_.header(peer, round_), rank_, arena_.header(rank_, round_));
  if (difference.empty()) return absl::OkStatus();
  return arena_.Fail(absl::StatusCode::kFailedPrecondition, difference);
}

}  // namespace facet
