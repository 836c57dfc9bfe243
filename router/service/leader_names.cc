#include "router/service/leader_names.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "absl/time/time.h"
#include "base/status.h"
#include "serving/address.h"

namespace facet {
namespace {

constexpr std::string_view kDnsPrefix = "dns:";

struct HostPort {
  std::string host;  // without brackets
  std::string port;
};

HostPort Split(std::string_view leader) {
  if (leader.starts_with(kDnsPrefix)) leader.remove_prefix(kDnsPrefix.size());
  while (leader.starts_with('/')) leader.remove_prefix(1);
  const size_t colon = leader.rfind(':');
  std::string_view host = leader.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  return {std::string(host),
          colon == std::string_view::npos ? std::string() : std::string(leader.substr(colon + 1))};
}

std::string AddressOf(const addrinfo& found, const std::string& port) {
  std::array<char, NI_MAXHOST> host{};
  if (getnameinfo(found.ai_addr, found.ai_addrlen, host.data(), host.size(), nullptr, 0,
                  NI_NUMERICHOST) != 0) {
    return {};
  }
  if (found.ai_family == AF_INET6) return fmt::format("[{}]:{}", host.data(), port);
  return fmt::format("{}:{}", host.data(), port);
}

void SortUnique(std::vector<std::string>& texts) {
  std::sort(texts.begin(), texts.end());
  texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ResolveBySystem(const std::string& name,
                                                         const std::string& port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(name.c_str(), port.c_str(), &hints, &found);
  if (error != 0) return Unavailable("{}: {}", name, gai_strerror(error));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  std::vector<std::string> addresses;
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (each->ai_family != found->ai_family) continue;
    if (std::string address = AddressOf(*each, port); !address.empty()) {
      addresses.push_back(std::move(address));
    }
  }
  SortUnique(addresses);
  return addresses;
}

bool IsLiteralAddress(std::string_view leader) {
  if (IsUnixAddress(leader) || leader.starts_with("unix-abstract:")) return true;
  if (leader.starts_with(kDnsPrefix)) return false;
  const std::string host = Split(leader).host;
  std::array<unsigned char, sizeof(in6_addr)> buffer;
  return inet_pton(AF_INET, host.c_str(), buffer.data()) == 1 ||
         inet_pton(AF_INET6, host.substr(0, host.find('%')).c_str(), buffer.data()) == 1;
}

LeaderNames::LeaderNames(LeaderNamesOptions options, ResolveName resolve,
                         std::function<void(std::vector<std::string>)> on_change)
    : options_(std::move(options)), resolve_(std::move(resolve)), on_change_(std::move(on_change)) {
  for (const std::string& leader : options_.leaders) {
    if (IsLiteralAddress(leader)) {
      literals_.push_back(leader);
    } else {
      HostPort split = Split(leader);
      names_.push_back(
          {.text = leader, .host = std::move(split.host), .port = std::move(split.port)});
    }
  }
  Tell();
  if (!names_.empty()) thread_ = std::thread([this] { Run(); });
}

LeaderNames::~LeaderNames() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void LeaderNames::Run() {
  pthread_setname_np(pthread_self(), "facet-names");
  for (;;) {
    for (Name& name : names_) Look(name);
    Tell();
    absl::MutexLock lock(&mutex_);
    if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(options_.interval))) {
      return;
    }
  }
}

void LeaderNames::Look(Name& name) {
  absl::StatusOr<std::vector<std::string>> addresses = resolve_(name.host, name.port);
  if (addresses.ok()) {
    name.addresses = *std::move(addresses);
    name.failing = false;
  } else if (!std::exchange(name.failing, true)) {
    spdlog::warn("--leaders: {} cannot be resolved: {}", name.text, MessageOf(addresses.status()));
  }
}

void LeaderNames::Tell() {
  std::vector<std::string> addresses = literals_;
  for (const Name& name : names_) {
    addresses.insert(addresses.end(), name.addresses.begin(), name.addresses.end());
  }
  // The order in which literals are given says nothing, but it is kept: it numbers the groups.
  if (!names_.empty()) SortUnique(addresses);
  if (addresses.size() > options_.leaders_max) {
    spdlog::warn("--leaders: {} addresses; only {} of them are used", addresses.size(),
                 options_.leaders_max);
    addresses.resize(options_.leaders_max);
  }
  if (addresses == told_) return;
  told_ = addresses;
  on_change_(std::move(addresses));
}

}  // namespace facet
