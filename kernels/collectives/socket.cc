#include "kernels/collectives/socket.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/status.h"

namespace facet {
namespace {

constexpr int kKeepaliveProbes = 3;

std::string ErrnoText(int error) { return std::strerror(error); }

absl::Status SetOption(int fd, int level, int option, int value, std::string_view name) {
  if (setsockopt(fd, level, option, &value, sizeof(value)) == 0) return absl::OkStatus();
  return Unavailable("{}: {}", name, ErrnoText(errno));
}

// Where an address keeps its host, without the port.
std::string_view HostBytes(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET) {
    const auto& in = reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    return {reinterpret_cast<const char*>(&in), sizeof(in)};
  }
  const auto& in = reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
  return {reinterpret_cast<const char*>(&in), sizeof(in)};
}

}  // namespace

absl::StatusOr<SocketAddress> ResolveAddress(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == address.size()) {
    return InvalidArgument("'{}' is not an address; write host:port", address);
  }
  std::string host(address.substr(0, colon));
  const std::string port(address.substr(colon + 1));
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) return InvalidArgument("'{}': {}", address, gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  SocketAddress result;
  std::memcpy(&result.storage, found->ai_addr, found->ai_addrlen);
  result.length = found->ai_addrlen;
  return result;
}

absl::StatusOr<UniqueFd> OpenTcpSocket(int family) {
  UniqueFd fd(socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return Unavailable("socket: {}", ErrnoText(errno));
  return fd;
}

absl::StatusOr<TcpListener> TcpListener::Bind(std::string_view address) {
  FACET_ASSIGN_OR_RETURN(const SocketAddress resolved, ResolveAddress(address));
  FACET_ASSIGN_OR_RETURN(UniqueFd fd, OpenTcpSocket(resolved.family()));
  // Connections of an epoch that has just ended do not keep the next from the same port.
  FACET_RETURN_IF_ERROR(SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"));
  if (bind(fd.get(), resolved.get(), resolved.length) != 0) {
    return FailedPrecondition("{}: cannot listen: {}", address, ErrnoText(errno));
  }
  sockaddr_storage bound = {};
  socklen_t length = sizeof(bound);
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &length) != 0) {
    return Unavailable("{}: getsockname: {}", address, ErrnoText(errno));
  }
  const in_port_t port = bound.ss_family == AF_INET
                             ? reinterpret_cast<const sockaddr_in&>(bound).sin_port
                             : reinterpret_cast<const sockaddr_in6&>(bound).sin6_port;
  return TcpListener(std::move(fd), ntohs(port));
}

absl::Status TcpListener::Listen(int backlog) const {
  if (listen(fd_.get(), backlog) == 0) return absl::OkStatus();
  return FailedPrecondition("port {}: cannot listen: {}", port_, ErrnoText(errno));
}

absl::Status PrepareConnection(int fd, std::chrono::milliseconds lost_link) {
  const int lost_ms = static_cast<int>(lost_link.count());
  const int idle_s = std::max(1, lost_ms / 2000);  // a probe, and as long for its answer
  FACET_RETURN_IF_ERROR(SetOption(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY"));
  FACET_RETURN_IF_ERROR(SetOption(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, lost_ms, "TCP_USER_TIMEOUT"));
  FACET_RETURN_IF_ERROR(SetOption(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"));
  FACET_RETURN_IF_ERROR(SetOption(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle_s, "TCP_KEEPIDLE"));
  FACET_RETURN_IF_ERROR(SetOption(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle_s, "TCP_KEEPINTVL"));
  return SetOption(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes, "TCP_KEEPCNT");
}

bool IsToThisHost(int fd) {
  sockaddr_storage mine = {};
  sockaddr_storage theirs = {};
  socklen_t mine_length = sizeof(mine);
  socklen_t theirs_length = sizeof(theirs);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&mine), &mine_length) != 0 ||
      getpeername(fd, reinterpret_cast<sockaddr*>(&theirs), &theirs_length) != 0) {
    return false;
  }
  return mine.ss_family == theirs.ss_family && HostBytes(mine) == HostBytes(theirs);
}

}  // namespace facet
