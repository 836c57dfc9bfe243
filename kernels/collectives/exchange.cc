#include "kernels/collectives/exchange.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/socket.h"

namespace facet {
namespace {

// So that deadlines do not overflow: longer than anyone waits.
constexpr std::chrono::milliseconds kTimeoutMax = std::chrono::hours(24 * 365);

double Seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

// Nobody spins where the ranks of this host are more than its processors.
std::chrono::nanoseconds SpinFor(const ExchangeOptions& options,
                                 const std::vector<PeerLink>& links) {
  const auto here = std::ranges::count_if(
      links, [](const PeerLink& link) { return link.valid() && IsToThisHost(link.fd()); });
  if (sysconf(_SC_NPROCESSORS_ONLN) < here + 1) return std::chrono::nanoseconds(0);
  return options.spin;
}

}  // namespace

Exchange::Exchange(int rank, std::vector<UniqueFd> sockets, const ExchangeOptions& options)
    : rank_(rank),
      options_(options),
      wishes_(sockets.size()),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  FACET_CHECK(rank >= 0 && rank < static_cast<int>(sockets.size()), "rank {} of {}", rank,
              sockets.size());
  FACET_CHECK(options.message_bytes_max <= UINT32_MAX, "a frame counts its bytes in 32 bits");
  FACET_CHECK(wake_.valid(), "eventfd: {}", std::strerror(errno));
  for (UniqueFd& socket : sockets) {
    if (socket.valid()) {
      links_.emplace_back(std::move(socket));
    } else {
      links_.emplace_back();
    }
  }
  spin_ = SpinFor(options, links_);
}

Exchange::~Exchange() {
  if (!failure_.ok()) AwaitHearers();
}

void Exchange::SetTimeout(std::chrono::milliseconds timeout) {
  timeout_ = std::min(timeout, kTimeoutMax);
}

absl::Status Exchange::BeginCall(const CallSubject& subject) {
  call_begin_ = Clock::now();
  call_wait_s_ = 0;
  deadline_ = call_begin_ + timeout_;
  call_ = HeaderOf(subject, step_);
  if (interrupted_.load(std::memory_order_acquire)) return FailAborted();
  return failure_;
}

// A failure is a peer's last word, but may stand behind frames that this rank has not called for
// yet.
absl::Status Exchange::Look() {
  if (interrupted_.load(std::memory_order_acquire)) return FailAborted();
  FACET_RETURN_IF_ERROR(failure_);
  polled_.clear();
  polled_ranks_.clear();
  for (int peer = 0; peer < world(); ++peer) {
    PeerLink& link = links_[peer];
    if (!link.valid()) continue;
    if (link.NextHeader() == PeerLink::Read::kReady && link.header().is_failure()) {
      const absl::Status failure = link.Failure();
      return Fail(failure.code(), MessageOf(failure));
    }
    polled_.push_back({link.fd(), POLLRDHUP, 0});
    polled_ranks_.push_back(peer);
  }
  if (poll(polled_.data(), polled_.size(), 0) <= 0) return absl::OkStatus();
  const auto ended = std::ranges::find_if(polled_, [](const pollfd& p) { return p.revents != 0; });
  const int gone = polled_ranks_[static_cast<size_t>(ended - polled_.begin())];
  const std::string& trouble = links_[gone].trouble();
  return Unavailable("rank {} is gone: {} (rank {} was in {})", gone,
                     trouble.empty() ? "it closed the connection" : trouble, rank_,
                     Describe(call_));
}

void Exchange::EndCall() {
  EndIdle();
  times_.wait_s += call_wait_s_;
  times_.work_s += Seconds(Clock::now() - call_begin_) - call_wait_s_;
}

Communicator::Times Exchange::TakeTimes() { return std::exchange(times_, Communicator::Times{}); }

void Exchange::Send(int peer, std::span<const iovec> parts) {
  links_[peer].Send(call_, parts);
  ++sends_open_;
}

void Exchange::AddWish(int peer, Wish wish) {
  FACET_CHECK(!wishes_[peer].open);
  wishes_[peer] = wish;
  ++wishes_open_;
}

void Exchange::Want(int peer, std::span<std::byte> place) {
  AddWish(peer, {.open = true, .place = place});
}

void Exchange::WantMessage(int peer, std::vector<std::byte>* message) {
  AddWish(peer, {.open = true, .message = message});
}

uint64_t Exchange::Moved() const {
  uint64_t moved = 0;
  for (const PeerLink& link : links_) moved += link.moved();
  return moved;
}

absl::Status Exchange::Run() {
  while (true) {
    const uint64_t before = Moved();
    FACET_RETURN_IF_ERROR(Move());
    if (Done()) return absl::OkStatus();
    if (Moved() != before) {
      EndIdle();
    } else {
      FACET_RETURN_IF_ERROR(Idle());
    }
  }
}

absl::Status Exchange::Move() {
  for (int peer = 0; peer < world(); ++peer) {
    if (links_[peer].sending()) FACET_RETURN_IF_ERROR(Push(peer));
  }
  for (int peer = 0; peer < world(); ++peer) {
    if (wishes_[peer].open) FACET_RETURN_IF_ERROR(Pull(peer));
  }
  return absl::OkStatus();
}

absl::Status Exchange::Push(int peer) {
  const bool taken = links_[peer].Push();
  if (!links_[peer].sending()) --sends_open_;
  // Its own last frames may still be there to be read; who wants them finds out.
  return taken || wishes_[peer].open ? absl::OkStatus() : FailGone(peer);
}

absl::Status Exchange::Pull(int peer) {
  PeerLink& link = links_[peer];
  Wish& wish = wishes_[peer];
  if (!wish.placed) {
    const PeerLink::Read read = link.NextHeader();
    if (read == PeerLink::Read::kGone && wish.open) return FailGone(peer);
    if (read != PeerLink::Read::kReady) return absl::OkStatus();
    if (link.header().is_failure()) {
      const absl::Status failure = link.Failure();
      return Fail(failure.code(), MessageOf(failure));
    }
    if (!wish.open) return absl::OkStatus();  // of a call that this rank is not in yet
    FACET_RETURN_IF_ERROR(Judge(peer));
    if (wish.message != nullptr) {
      wish.message->resize(link.header().bytes);
      wish.place = *wish.message;
    }
    link.Place(wish.place);
    wish.placed = true;
  }
  switch (link.Payload()) {
    case PeerLink::Read::kMore:
      return absl::OkStatus();
    case PeerLink::Read::kGone:
      return FailGone(peer);
    case PeerLink::Read::kReady:
      break;
  }
  wish = Wish();
  --wishes_open_;
  return absl::OkStatus();
}

absl::Status Exchange::Judge(int peer) {
  const FrameHeader& header = links_[peer].header();
  const std::string difference = DifferenceOf(peer, header.call, rank_, call_);
  if (!difference.empty()) return Fail(absl::StatusCode::kFailedPrecondition, difference);
  if (wishes_[peer].message != nullptr) {
    FACET_RETURN_IF_ERROR(CheckMessageSize(peer, header.call.size));
    if (header.bytes == header.call.size) return absl::OkStatus();
  } else if (header.bytes == wishes_[peer].place.size()) {
    return absl::OkStatus();
  }
  return Fail(
      absl::StatusCode::kFailedPrecondition,
      fmt::format("rank {} sent a frame of {} bytes in {}, which is not what rank {} awaits", peer,
                  header.bytes, Describe(call_), rank_));
}

absl::Status Exchange::CheckMessageSize(int sender, uint64_t bytes) {
  if (bytes <= options_.message_bytes_max) return absl::OkStatus();
  return Fail(absl::StatusCode::kResourceExhausted,
              fmt::format("rank {} sends {} bytes in {}, rank {} accepts at most {}", sender, bytes,
                          Describe(call_), rank_, options_.message_bytes_max));
}

absl::Status Exchange::Idle() {
  const Clock::time_point now = Clock::now();
  if (!std::exchange(idle_, true)) idle_since_ = now;
  if (interrupted_.load(std::memory_order_acquire)) return FailAborted();
  if (now >= deadline_) return FailLate();
  if (now < idle_since_ + spin_) return absl::OkStatus();
  return Sleep(now);
}

void Exchange::EndIdle() {
  if (std::exchange(idle_, false)) call_wait_s_ += Seconds(Clock::now() - idle_since_);
}

// Also looks at peers from which nothing is wanted now: they may have failed, and say why. One
// whose next frame has come already is not looked at, for it would end every sleep.
absl::Status Exchange::Sleep(Clock::time_point now) {
  polled_.clear();
  polled_ranks_.clear();
  polled_.push_back({wake_.get(), POLLIN, 0});
  for (int peer = 0; peer < world(); ++peer) {
    const PeerLink& link = links_[peer];
    if (!link.valid()) continue;
    const bool hears = !link.gone() && (wishes_[peer].open || !link.holds_header());
    const int events = (hears ? POLLIN : 0) | (link.sending() ? POLLOUT : 0);
    if (events == 0) continue;
    polled_.push_back({link.fd(), static_cast<short>(events), 0});
    polled_ranks_.push_back(peer);
  }
  const std::chrono::nanoseconds left = deadline_ - now;
  const timespec timeout = {.tv_sec = static_cast<time_t>(left.count() / 1'000'000'000),
                            .tv_nsec = static_cast<long>(left.count() % 1'000'000'000)};
  const int ready = ppoll(polled_.data(), polled_.size(), &timeout, nullptr);
  FACET_CHECK(ready >= 0 || errno == EINTR, "ppoll: {}", std::strerror(errno));
  if (ready <= 0) return absl::OkStatus();
  for (size_t i = 0; i < polled_ranks_.size(); ++i) {
    const int peer = polled_ranks_[i];
    if (polled_[i + 1].revents != 0 && !wishes_[peer].open) FACET_RETURN_IF_ERROR(Pull(peer));
  }
  return absl::OkStatus();
}

absl::Status Exchange::Fail(absl::StatusCode code, std::string_view message) {
  if (!failure_.ok()) return failure_;
  failure_ = MakeStatus(code, message);
  for (PeerLink& link : links_) {
    if (link.valid() && !link.half_sent()) link.Close(code, message);
  }
  FinishFrames();
  for (PeerLink& link : links_) {
    if (link.valid() && !link.closed()) link.Close(code, message);
  }
  return failure_;
}

// What was begun is what the peer awaits, so it does no harm, and the peer comes to read why this
// rank fails. It may be doing the same: what it sends is thrown away to make room.
void Exchange::FinishFrames() {
  const Clock::time_point end = Clock::now() + options_.last_words;
  while (true) {
    polled_.clear();
    for (PeerLink& link : links_) {
      if (!link.valid() || !link.half_sent() || !link.Push() || !link.half_sent()) continue;
      link.Discard();
      const int events = POLLOUT | (link.gone() ? 0 : POLLIN);
      polled_.push_back({link.fd(), static_cast<short>(events), 0});
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
    if (polled_.empty() || left.count() <= 0) return;
    poll(polled_.data(), polled_.size(), static_cast<int>(left.count()));
  }
}

// A socket that is closed before all was read takes what it has still to send with it. Peers that
// hear of the failure close, too.
void Exchange::AwaitHearers() {
  const Clock::time_point end = Clock::now() + options_.last_words;
  while (true) {
    polled_.clear();
    for (PeerLink& link : links_) {
      if (!link.valid()) continue;
      link.Discard();
      if (!link.gone()) polled_.push_back({link.fd(), POLLIN, 0});
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now());
    if (polled_.empty() || left.count() <= 0) return;
    poll(polled_.data(), polled_.size(), static_cast<int>(left.count()));
  }
}

absl::Status Exchange::FailAborted() {
  return Fail(absl::StatusCode::kAborted, fmt::format("rank {} aborted the group", rank_));
}

void Exchange::Interrupt() {
  interrupted_.store(true, std::memory_order_release);
  const uint64_t one = 1;
  static_cast<void>(write(wake_.get(), &one, sizeof(one)));
}

absl::Status Exchange::FailLate() {
  std::vector<int> late;
  std::vector<int> full;  // do not take what they are sent
  for (int peer = 0; peer < world(); ++peer) {
    if (wishes_[peer].open) late.push_back(peer);
    if (links_[peer].sending()) full.push_back(peer);
  }
  const std::vector<int>& blamed = late.empty() ? full : late;
  return Fail(absl::StatusCode::kDeadlineExceeded,
              fmt::format("rank{} {} did not arrive at {} within {} ms (rank {} waited)",
                          blamed.size() > 1 ? "s" : "", fmt::join(blamed, ", "), Describe(call_),
                          timeout_.count(), rank_));
}

// A peer that is gone may have failed because of another, whose end came first or is here as well:
// who says why is believed, and else all are named that are gone.
absl::Status Exchange::FailGone(int gone) {
  std::vector<int> names;
  for (int peer = 0; peer < world(); ++peer) {
    PeerLink& link = links_[peer];
    if (!link.valid() || wishes_[peer].placed) continue;
    if (link.NextHeader() == PeerLink::Read::kReady && link.header().is_failure()) {
      const absl::Status failure = link.Failure();
      return Fail(failure.code(), MessageOf(failure));
    }
  }
  for (int peer = 0; peer < world(); ++peer) {
    if (peer == gone || links_[peer].gone()) names.push_back(peer);
  }
  const std::string& trouble = links_[gone].trouble();
  return Fail(
      absl::StatusCode::kUnavailable,
      fmt::format("rank{} {} {} gone: {} (rank {} was in {})", names.size() > 1 ? "s" : "",
                  fmt::join(names, ", "), names.size() > 1 ? "are" : "is",
                  trouble.empty() ? "it takes nothing any more" : trouble, rank_, Describe(call_)));
}

}  // namespace facet
