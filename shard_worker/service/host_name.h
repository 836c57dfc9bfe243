#ifndef FACET_SHARD_WORKER_SERVICE_HOST_NAME_H_
#define FACET_SHARD_WORKER_SERVICE_HOST_NAME_H_

#include <string>
#include <string_view>

namespace facet {

// Names the running kernel: equal in all containers of a machine. Empty if the system does not
// tell.
std::string BootId();

// Says where this process is: equal for processes of one user in one network namespace of one
// running kernel, which is what it takes to share memory over a socket with an abstract name. Empty
// if the system does not tell.
std::string HostIdentity();

// The host of a gRPC address or peer, as host:port has it: "ipv4:10.0.0.5:4711" and
// "dns:///10.0.0.5:80" give "10.0.0.5", "ipv6:%5B::1%5D:80" gives "[::1]", and unix sockets, which
// end on this host, "127.0.0.1".
std::string HostOfPeer(std::string_view peer);

bool IsLoopback(std::string_view host);
// Neither missing, nor the name of all interfaces.
bool IsOneHost(std::string_view host);
// Whether `host`, an IP address, is this host's. Machines that were cloned while they ran may agree
// in HostIdentity(), but not in this.
bool IsOwnAddress(const std::string& host);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_HOST_NAME_H_
