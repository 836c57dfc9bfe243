#ifndef FACET_KERNELS_COLLECTIVES_SOCKET_H_
#define FACET_KERNELS_COLLECTIVES_SOCKET_H_

#include <sys/socket.h>

#include <chrono>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/unique_fd.h"

namespace facet {

struct SocketAddress {
  sockaddr_storage storage = {};
  socklen_t length = 0;

  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const { return storage.ss_family; }
};

// "127.0.0.1:8500", "[::1]:8500" or "name:8500"; ":8500" is any interface's, to listen on. Asks
// the resolver for names, which may take its time. InvalidArgument names what is wrong.
absl::StatusOr<SocketAddress> ResolveAddress(std::string_view address);

// A port of this host that is taken, and refuses callers until it listens: nobody can wait at it
// before there is a group to form.
class TcpListener {
 public:
  // `address` as above; port 0: any free one. FailedPrecondition if the port is in use.
  static absl::StatusOr<TcpListener> Bind(std::string_view address);

  int port() const { return port_; }
  int fd() const { return fd_.get(); }
  absl::Status Listen(int backlog) const;

 private:
  TcpListener(UniqueFd fd, int port) : fd_(std::move(fd)), port_(port) {}
  UniqueFd fd_;
  int port_;
};

// A socket that does not block and no child inherits.
absl::StatusOr<UniqueFd> OpenTcpSocket(int family);

// Sends at once, and notices within about `lost_link` that the peer's host does not answer, whether
// data is under way or not.
absl::Status PrepareConnection(int fd, std::chrono::milliseconds lost_link);

// Whether a connection's two ends have one address: then the peer is on this host.
bool IsToThisHost(int fd);

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_SOCKET_H_
