#include "shard_worker/service/host_name.h"

#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <fstream>

#include "kernels/collectives/socket.h"

namespace facet {

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string boot;
  return std::getline(file, boot) ? boot : std::string();
}

std::string HostIdentity() {
  const std::string boot = BootId();
  std::array<char, 128> space = {};
  const ssize_t bytes = readlink("/proc/self/ns/net", space.data(), space.size());
  if (boot.empty() || bytes <= 0) return {};
  return fmt::format("{} {} user {}", boot,
                     std::string_view(space.data(), static_cast<size_t>(bytes)), geteuid());
}

std::string HostOfPeer(std::string_view peer) {
  if (peer.starts_with("unix:") || peer.starts_with("unix-abstract:")) return "127.0.0.1";
  for (const std::string_view scheme : {"ipv4:", "ipv6:", "dns:"}) {
    if (peer.starts_with(scheme)) peer.remove_prefix(scheme.size());
  }
  if (const size_t slash = peer.rfind('/'); slash != peer.npos) peer.remove_prefix(slash + 1);
  std::string host(peer.substr(0, peer.rfind(':')));
  if (host.starts_with("%5B") && host.ends_with("%5D")) {
    host = "[" + host.substr(3, host.size() - 6) + "]";
  }
  return host;
}

bool IsLoopback(std::string_view host) {
  return host.starts_with("127.") || host == "localhost" || host == "[::1]";
}

bool IsOneHost(std::string_view host) {
  return !host.empty() && host != "0.0.0.0" && host != "[::]" && host != "*";
}

bool IsOwnAddress(const std::string& host) { return TcpListener::Bind(host + ":0").ok(); }

}  // namespace facet
