#include "kernels/collectives/mesh.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr int kBacklog = 128;

std::string ErrnoText(int error) { return std::strerror(error); }

bool TryAgain(int error) { return error == EAGAIN || error == EWOULDBLOCK || error == EINTR; }

// Bytes of a known number, as they come.
template <size_t kBytes>
class Intake {
 public:
  enum class State { kMore, kWhole, kClosed };

  State Read(int fd) {
    const ssize_t bytes = recv(fd, bytes_.data() + got_, kBytes - got_, 0);
    if (bytes < 0) return TryAgain(errno) ? State::kMore : State::kClosed;
    if (bytes == 0) return State::kClosed;
    got_ += static_cast<size_t>(bytes);
    return got_ == kBytes ? State::kWhole : State::kMore;
  }
  std::span<const std::byte, kBytes> bytes() const { return bytes_; }

 private:
  std::array<std::byte, kBytes> bytes_;
  size_t got_ = 0;
};

// True if a fresh connection took all of `bytes`, which its empty buffer does.
template <size_t kBytes>
bool SendWhole(int fd, const std::array<std::byte, kBytes>& bytes) {
  return send(fd, bytes.data(), kBytes, MSG_NOSIGNAL) == static_cast<ssize_t>(kBytes);
}

// A lower rank that this one calls.
struct Call {
  int to = 0;
  SocketAddress address;
  UniqueFd socket;
  bool connected = false;
  Intake<kWelcomeBytes> welcome;
  MeshClock::time_point retry_at;
  std::string trouble = "it does not answer";
};

// Somebody who has connected and not said who he is.
struct Visitor {
  UniqueFd socket;
  MeshClock::time_point since;
  Intake<kHelloBytes> hello;
};

class Mesh {
 public:
  Mesh(const TcpListener& listener, const TcpGroup& group, const MeshOptions& options)
      : listener_(listener), group_(group), options_(options), links_(group.world) {}

  absl::Status Begin();
  bool whole() const { return missing().empty(); }
  std::vector<int> missing() const;
  std::string Troubles() const;
  // Waits for something to happen, until `deadline`, and deals with it.
  absl::Status Turn(MeshClock::time_point deadline);
  std::vector<UniqueFd> Take() { return std::move(links_); }

 private:
  void Place(Call* call);
  void Drop(Call* call, std::string trouble);
  void Advance(Call* call);
  void Accept();
  // False if the visitor is done with: let in, or turned away.
  bool Hear(Visitor* visitor);
  void ExpireVisitors();
  int WaitMilliseconds(MeshClock::time_point deadline) const;

  const TcpListener& listener_;
  const TcpGroup& group_;
  const MeshOptions options_;
  std::vector<UniqueFd> links_;
  std::vector<Call> calls_;        // to ranks without a link
  std::vector<Visitor> visitors_;  // the oldest first
};

absl::Status Mesh::Begin() {
  for (int to = 0; to < group_.rank; ++to) {
    Call& call = calls_.emplace_back();
    call.to = to;
    FACET_ASSIGN_OR_RETURN(call.address, ResolveAddress(group_.addresses[to]));
  }
  return group_.rank + 1 < group_.world ? listener_.Listen(kBacklog) : absl::OkStatus();
}

std::vector<int> Mesh::missing() const {
  std::vector<int> ranks;
  for (int rank = 0; rank < group_.world; ++rank) {
    if (rank != group_.rank && !links_[rank].valid()) ranks.push_back(rank);
  }
  return ranks;
}

std::string Mesh::Troubles() const {
  std::string text;
  for (const int rank : missing()) {
    const auto call =
        std::ranges::find_if(calls_, [rank](const Call& call) { return call.to == rank; });
    text += text.empty() ? "" : "; ";
    text += call == calls_.end()
                ? fmt::format("rank {} has not called", rank)
                : fmt::format("rank {} at {}: {}", rank, group_.addresses[rank], call->trouble);
  }
  return text;
}

void Mesh::Place(Call* call) {
  auto socket = OpenTcpSocket(call->address.family());
  if (!socket.ok()) return Drop(call, MessageOf(socket.status()));
  call->socket = *std::move(socket);
  call->connected = false;
  call->welcome = {};
  const int error = connect(call->socket.get(), call->address.get(), call->address.length);
  if (error != 0 && errno != EINPROGRESS) Drop(call, ErrnoText(errno));
}

void Mesh::Drop(Call* call, std::string trouble) {
  call->socket = UniqueFd();
  call->trouble = std::move(trouble);
  call->retry_at = MeshClock::now() + options_.retry;
}

void Mesh::Advance(Call* call) {
  const int fd = call->socket.get();
  if (!call->connected) {
    int error = 0;
    socklen_t length = sizeof(error);
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error != 0) return Drop(call, ErrnoText(error));
    const TcpHello hello = {group_.rank, call->to, group_.world, group_.key.caller};
    if (!SendWhole(fd, EncodeHello(hello))) return Drop(call, ErrnoText(errno));
    call->connected = true;
    call->trouble = "it accepts calls but is not forming this group";
    return;
  }
  switch (call->welcome.Read(fd)) {
    case Intake<kWelcomeBytes>::State::kMore:
      return;
    case Intake<kWelcomeBytes>::State::kClosed:
      return Drop(call, "it turned this rank away: another group, epoch or version");
    case Intake<kWelcomeBytes>::State::kWhole:
      break;
  }
  const absl::StatusOr<TcpNonce> nonce = ParseWelcome(call->welcome.bytes());
  if (!nonce.ok() || !SameNonce(*nonce, group_.key.host)) {
    return Drop(call, "who answers there is not of this group");
  }
  if (absl::Status status = PrepareConnection(fd, options_.lost_link); !status.ok()) {
    return Drop(call, MessageOf(status));
  }
  links_[call->to] = std::move(call->socket);
}

// Not all that may come in a flood: the links that stand and the deadline want to be looked at.
void Mesh::Accept() {
  for (size_t i = 0; i < options_.visitors_max; ++i) {
    UniqueFd socket(accept4(listener_.fd(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!socket.valid()) {
      // Out of descriptors: the oldest gives its up, else who waits would keep the poll awake.
      if ((errno == EMFILE || errno == ENFILE) && !visitors_.empty()) {
        visitors_.erase(visitors_.begin());
        continue;
      }
      return;
    }
    if (visitors_.size() >= options_.visitors_max) visitors_.erase(visitors_.begin());
    visitors_.push_back({.socket = std::move(socket), .since = MeshClock::now()});
  }
}

bool Mesh::Hear(Visitor* visitor) {
  const int fd = visitor->socket.get();
  const auto state = visitor->hello.Read(fd);
  if (state != Intake<kHelloBytes>::State::kWhole) {
    return state == Intake<kHelloBytes>::State::kMore;
  }
  // A stranger is told nothing. A rank of this epoch that comes again has lost what it had.
  const absl::StatusOr<TcpHello> hello = ParseHello(visitor->hello.bytes());
  if (!hello.ok() || !SameNonce(hello->nonce, group_.key.caller) || hello->to != group_.rank ||
      hello->world != group_.world) {
    return false;
  }
  if (!PrepareConnection(fd, options_.lost_link).ok() ||
      !SendWhole(fd, EncodeWelcome(group_.key.host))) {
    return false;
  }
  links_[hello->rank] = std::move(visitor->socket);
  return false;
}

void Mesh::ExpireVisitors() {
  const auto oldest = MeshClock::now() - options_.hello_timeout;
  std::erase_if(visitors_, [&](const Visitor& visitor) { return visitor.since < oldest; });
}

int Mesh::WaitMilliseconds(MeshClock::time_point deadline) const {
  auto until = deadline;
  for (const Call& call : calls_) {
    if (!call.socket.valid() && !links_[call.to].valid()) until = std::min(until, call.retry_at);
  }
  if (!visitors_.empty()) {
    until = std::min(until, visitors_.front().since + options_.hello_timeout);
  }
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - MeshClock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 60'000));
}

absl::Status Mesh::Turn(MeshClock::time_point deadline) {
  std::vector<pollfd> polled = {{listener_.fd(), POLLIN, 0}};
  std::vector<Call*> waiting;
  for (Call& call : calls_) {
    if (links_[call.to].valid()) continue;
    if (!call.socket.valid() && MeshClock::now() >= call.retry_at) Place(&call);
    if (!call.socket.valid()) continue;
    waiting.push_back(&call);
    polled.push_back({call.socket.get(), static_cast<short>(call.connected ? POLLIN : POLLOUT), 0});
  }
  const size_t first_visitor = polled.size();
  for (const Visitor& visitor : visitors_) polled.push_back({visitor.socket.get(), POLLIN, 0});
  const int ready = poll(polled.data(), polled.size(), WaitMilliseconds(deadline));
  if (ready < 0 && errno != EINTR) return Unavailable("poll: {}", ErrnoText(errno));
  if (ready > 0) {
    for (size_t i = 0; i < waiting.size(); ++i) {
      if (polled[i + 1].revents != 0) Advance(waiting[i]);
    }
    std::vector<Visitor> staying;
    for (size_t i = 0; i < visitors_.size(); ++i) {
      if (polled[first_visitor + i].revents == 0 || Hear(&visitors_[i])) {
        staying.push_back(std::move(visitors_[i]));
      }
    }
    visitors_ = std::move(staying);
    if (polled[0].revents != 0) Accept();
  }
  ExpireVisitors();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<UniqueFd>> FormMesh(const TcpListener& listener, const TcpGroup& group,
                                               const MeshOptions& options,
                                               MeshClock::time_point deadline) {
  Mesh mesh(listener, group, options);
  FACET_RETURN_IF_ERROR(mesh.Begin());
  while (!mesh.whole()) {
    if (MeshClock::now() >= deadline) {
      return DeadlineExceeded("rank {} has no connection to rank(s) {}: {}", group.rank,
                              fmt::join(mesh.missing(), ", "), mesh.Troubles());
    }
    FACET_RETURN_IF_ERROR(mesh.Turn(deadline));
  }
  return mesh.Take();
}

}  // namespace facet
