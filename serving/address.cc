#include "serving/address.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/status.h"

namespace facet {
namespace {

constexpr std::string_view kUnixPrefix = "unix:";

// A socket that closes itself.
class Socket {
 public:
  Socket(int family, int type) : fd_(socket(family, type | SOCK_CLOEXEC, 0)) {}
  ~Socket() {
    if (fd_ >= 0) close(fd_);
  }
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;
  int fd() const { return fd_; }

 private:
  int fd_;
};

absl::Status ProbeUnix(std::string_view address) {
  const std::string_view path = address.substr(kUnixPrefix.size());
  sockaddr_un target{};
  target.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof target.sun_path) {
    return InvalidArgument("{}: the path of a unix socket has 1 to {} bytes", address,
                           sizeof target.sun_path - 1);
  }
  std::memcpy(target.sun_path, path.data(), path.size());
  const Socket probe(AF_UNIX, SOCK_STREAM);
  if (connect(probe.fd(), reinterpret_cast<const sockaddr*>(&target), sizeof target) == 0) {
    return FailedPrecondition("{}: in use by another process", address);
  }
  return absl::OkStatus();
}

absl::Status BindError(std::string_view address, int error) {
  if (error == EADDRINUSE) {
    return FailedPrecondition("{}: the port is in use by another process", address);
  }
  return FailedPrecondition("{}: cannot listen: {}", address, std::strerror(error));
}

absl::Status ProbeTcp(std::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string_view::npos || colon + 1 == address.size()) {
    return InvalidArgument("{}: not an address; write host:port or unix:/path", address);
  }
  std::string host(address.substr(0, colon));
  const std::string port(address.substr(colon + 1));
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &found);
  if (error != 0) return InvalidArgument("{}: {}", address, gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  const Socket probe(found->ai_family, SOCK_STREAM);
  const int reuse = 1;
  setsockopt(probe.fd(), SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse);
  if (bind(probe.fd(), found->ai_addr, found->ai_addrlen) != 0 || listen(probe.fd(), 1) != 0) {
    return BindError(address, errno);
  }
  return absl::OkStatus();
}

}  // namespace

bool IsUnixAddress(std::string_view address) { return address.starts_with(kUnixPrefix); }

std::string WithPort(std::string_view address, int port) {
  return fmt::format("{}:{}", address.substr(0, address.rfind(':')), port);
}

absl::Status ProbeListen(std::string_view address) {
  return IsUnixAddress(address) ? ProbeUnix(address) : ProbeTcp(address);
}

absl::Status WriteAddressFile(const std::string& path, std::string_view address) {
  const std::string temporary = fmt::format("{}.{}", path, getpid());
  std::FILE* file = std::fopen(temporary.c_str(), "we");
  if (file == nullptr) {
    return FailedPrecondition("{}: cannot write: {}", temporary, std::strerror(errno));
  }
  const bool written =
      std::fprintf(file, "%.*s\n", static_cast<int>(address.size()), address.data()) > 0;
  if (std::fclose(file) != 0 || !written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    std::remove(temporary.c_str());
    return FailedPrecondition("{}: cannot write: {}", path, std::strerror(error));
  }
  return absl::OkStatus();
}

}  // namespace facet
