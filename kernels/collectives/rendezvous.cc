#include "kernels/collectives/rendezvous.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"

namespace facet {
namespace {

constexpr uint64_t kMagic = 0x66616365'74686579;  // "facethey"
constexpr uint32_t kVersion = 1;
constexpr std::string_view kPrefix = "facet-collectives:";
// Strangers that connect and say nothing; more are turned away.
constexpr size_t kVisitorsMax = 128;

struct Hello {
  uint64_t magic = kMagic;
  uint32_t version = kVersion;
  int32_t rank = 0;
  int32_t world = 0;
  uint32_t reserved = 0;
  uint64_t nonce = 0;
};

// With code 0 a file comes along; otherwise the text says why not.
struct Reply {
  uint64_t magic = kMagic;
  int32_t code = 0;
  uint32_t text_bytes = 0;
  char text[240] = {};
};

std::string ErrnoText(int error) { return std::strerror(error); }

int MillisecondsLeft(RendezvousClock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - RendezvousClock::now());
  return static_cast<int>(std::clamp<int64_t>(left.count(), 0, 1'000'000));
}

struct Address {
  sockaddr_un address = {};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

// A leading zero byte makes the name abstract: it lives and dies with the socket.
Address AddressOf(std::string_view name) {
  Address result;
  result.address.sun_family = AF_UNIX;
  const std::string path = std::string(1, '\0') + std::string(kPrefix) + std::string(name);
  std::memcpy(result.address.sun_path, path.data(), path.size());
  result.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size());
  return result;
}

absl::StatusOr<UniqueFd> MakeSocket(int flags) {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | flags, 0));
  if (!fd.valid()) return Unavailable("socket: {}", ErrnoText(errno));
  return fd;
}

absl::Status SendReply(int to, const absl::Status& status, int file) {
  const std::string text = MessageOf(status);
  Reply reply;
  reply.code = static_cast<int32_t>(status.code());
  reply.text_bytes = static_cast<uint32_t>(std::min(text.size(), sizeof(reply.text)));
  std::memcpy(reply.text, text.data(), reply.text_bytes);
  iovec part = {&reply, sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (file >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &file, sizeof(int));
  }
  if (sendmsg(to, &message, MSG_NOSIGNAL) < 0) return Unavailable("{}", ErrnoText(errno));
  return absl::OkStatus();
}

// The file that came with a message, if one did.
UniqueFd FileOf(msghdr* message) {
  for (cmsghdr* header = CMSG_FIRSTHDR(message); header != nullptr;
       header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
    return UniqueFd(fd);
  }
  return UniqueFd();
}

absl::StatusOr<UniqueFd> ReceiveReply(int from) {
  Reply reply;
  iovec part = {&reply, sizeof(reply)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message = {};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  const ssize_t bytes = recvmsg(from, &message, MSG_CMSG_CLOEXEC);
  UniqueFd file = bytes > 0 ? FileOf(&message) : UniqueFd();
  if (bytes <= 0) return Unavailable("rank 0 went away before the group was whole");
  if (bytes != sizeof(reply) || reply.magic != kMagic) {
    return FailedPrecondition("rank 0 gave an answer that this program does not know");
  }
  if (reply.code != 0) {
    const size_t length = std::min<size_t>(reply.text_bytes, sizeof(reply.text));
    return MakeStatus(static_cast<absl::StatusCode>(reply.code),
                      std::string_view(reply.text, length));
  }
  if (!file.valid()) return FailedPrecondition("rank 0 answered without the shared memory");
  return file;
}

bool IsOurUser(int socket) {
  ucred peer = {};
  socklen_t length = sizeof(peer);
  return getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.uid == geteuid();
}

// Rank 0's side: visitors until each rank is among them.
class Host {
 public:
  Host(UniqueFd listener, const GroupName& group) : listener_(std::move(listener)), group_(group) {}

  bool whole() const { return missing().empty(); }
  std::vector<int> missing() const;
  // Waits for something to happen, until `deadline`, and deals with it.
  absl::Status Poll(RendezvousClock::time_point deadline);
  absl::Status HandOutToAll(int fd) const;

 private:
  struct Visitor {
    UniqueFd socket;
    int rank = -1;  // unknown before its hello
  };

  void Accept();
  // False if the visitor is gone or was turned away.
  bool Listen(Visitor* visitor);
  absl::Status Check(const Hello& hello, ssize_t bytes) const;
  bool Has(int rank) const;

  UniqueFd listener_;
  GroupName group_;
  std::vector<Visitor> visitors_;
};

bool Host::Has(int rank) const {
  return std::any_of(visitors_.begin(), visitors_.end(),
                     [rank](const Visitor& visitor) { return visitor.rank == rank; });
}

std::vector<int> Host::missing() const {
  std::vector<int> ranks;
  for (int rank = 1; rank < group_.world; ++rank) {
    if (!Has(rank)) ranks.push_back(rank);
  }
  return ranks;
}

absl::Status Host::Poll(RendezvousClock::time_point deadline) {
  std::vector<pollfd> polled = {{listener_.get(), POLLIN, 0}};
  for (const Visitor& visitor : visitors_) polled.push_back({visitor.socket.get(), POLLIN, 0});
  const int ready = poll(polled.data(), polled.size(), MillisecondsLeft(deadline));
  if (ready < 0 && errno != EINTR) return Unavailable("poll: {}", ErrnoText(errno));
  if (ready <= 0) return absl::OkStatus();
  std::vector<Visitor> staying;
  for (size_t i = 0; i < visitors_.size(); ++i) {
    if (polled[i + 1].revents == 0 || Listen(&visitors_[i])) {
      staying.push_back(std::move(visitors_[i]));
    }
  }
  visitors_ = std::move(staying);
  if (polled[0].revents != 0) Accept();
  return absl::OkStatus();
}

void Host::Accept() {
  UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!socket.valid() || visitors_.size() >= kVisitorsMax || !IsOurUser(socket.get())) return;
  visitors_.push_back({std::move(socket), -1});
}

bool Host::Listen(Visitor* visitor) {
  Hello hello;
  const ssize_t bytes = recv(visitor->socket.get(), &hello, sizeof(hello), 0);
  if (bytes < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (bytes <= 0 || visitor->rank >= 0) return false;  // it left, or talks out of turn
  if (absl::Status status = Check(hello, bytes); !status.ok()) {
    SendReply(visitor->socket.get(), status, -1).IgnoreError();  // it may be gone; no matter
    return false;
  }
  visitor->rank = hello.rank;
  return true;
}

absl::Status Host::Check(const Hello& hello, ssize_t bytes) const {
  if (bytes < static_cast<ssize_t>(sizeof(hello)) || hello.magic != kMagic) {
    return FailedPrecondition("group '{}' was visited by something that is no rank", group_.name);
  }
  if (hello.version != kVersion) {
    return FailedPrecondition("rank {} of group '{}' speaks version {}, rank 0 version {}",
                              hello.rank, group_.name, hello.version, kVersion);
  }
  if (hello.world != group_.world) {
    return FailedPrecondition("rank {} of group '{}' expects {} ranks, rank 0 expects {}",
                              hello.rank, group_.name, hello.world, group_.world);
  }
  if (hello.nonce != group_.nonce) {
    return FailedPrecondition("rank {} of group '{}' has nonce {:#x}, rank 0 has {:#x}", hello.rank,
                              group_.name, hello.nonce, group_.nonce);
  }
  if (hello.rank < 1 || hello.rank >= group_.world || Has(hello.rank)) {
    return FailedPrecondition("group '{}' of {} ranks has no place for another rank {}",
                              group_.name, group_.world, hello.rank);
  }
  return absl::OkStatus();
}

absl::Status Host::HandOutToAll(int fd) const {
  for (const Visitor& visitor : visitors_) {
    if (visitor.rank < 0) continue;
    FACET_RETURN_IF_ERROR(
        Annotate(SendReply(visitor.socket.get(), absl::OkStatus(), fd),
                 fmt::format("rank {} left group '{}' as it formed", visitor.rank, group_.name)));
  }
  return absl::OkStatus();
}

// A socket connected to rank 0, which may have to start first.
absl::StatusOr<UniqueFd> Connect(const GroupName& group, RendezvousClock::time_point deadline) {
  const Address address = AddressOf(group.name);
  while (true) {
    FACET_ASSIGN_OR_RETURN(UniqueFd socket, MakeSocket(SOCK_NONBLOCK));
    if (connect(socket.get(), address.get(), address.length) == 0) return socket;
    if (errno != ECONNREFUSED && errno != EAGAIN && errno != EINTR) {
      return Unavailable("group '{}': connect: {}", group.name, ErrnoText(errno));
    }
    if (RendezvousClock::now() >= deadline) {
      return DeadlineExceeded("rank 0 of group '{}' did not appear in time", group.name);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

absl::Status HandOut(int fd, const GroupName& group, RendezvousClock::time_point deadline) {
  FACET_ASSIGN_OR_RETURN(UniqueFd listener, MakeSocket(SOCK_NONBLOCK));
  const Address address = AddressOf(group.name);
  if (bind(listener.get(), address.get(), address.length) != 0) {
    if (errno == EADDRINUSE) {
      return MakeStatus(absl::StatusCode::kAlreadyExists,
                        fmt::format("another rank 0 is forming group '{}'", group.name));
    }
    return Unavailable("group '{}': bind: {}", group.name, ErrnoText(errno));
  }
  if (listen(listener.get(), static_cast<int>(kVisitorsMax)) != 0) {
    return Unavailable("group '{}': listen: {}", group.name, ErrnoText(errno));
  }
  Host host(std::move(listener), group);
  while (!host.whole()) {
    if (RendezvousClock::now() >= deadline) {
      return DeadlineExceeded("rank(s) {} of group '{}' did not attach in time",
                              fmt::join(host.missing(), ", "), group.name);
    }
    FACET_RETURN_IF_ERROR(host.Poll(deadline));
  }
  return host.HandOutToAll(fd);
}

absl::StatusOr<UniqueFd> Fetch(const GroupName& group, int rank,
                               RendezvousClock::time_point deadline) {
  FACET_ASSIGN_OR_RETURN(UniqueFd socket, Connect(group, deadline));
  Hello hello;
  hello.rank = rank;
  hello.world = group.world;
  hello.nonce = group.nonce;
  // If this fails, rank 0 has closed the socket, which the wait below notices.
  static_cast<void>(send(socket.get(), &hello, sizeof(hello), MSG_NOSIGNAL));
  pollfd polled = {socket.get(), POLLIN, 0};
  while (poll(&polled, 1, MillisecondsLeft(deadline)) <= 0) {
    if (RendezvousClock::now() >= deadline) {
      return DeadlineExceeded("group '{}' was not whole in time (rank {} waited)", group.name,
                              rank);
    }
  }
  return ReceiveReply(socket.get());
}

}  // namespace facet
