#ifndef FACET_ROUTER_SERVICE_LEADER_NAMES_H_
#define FACET_ROUTER_SERVICE_LEADER_NAMES_H_

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace facet {

struct LeaderNamesOptions {
  // As --leaders has them: host:port, unix:/path, or dns:name:port. A literal address is one
  // leader; a name stands for all the leaders that it resolves to.
  std::vector<std::string> leaders;
  std::chrono::milliseconds interval{5'000};  // between two looks at the names
  size_t leaders_max = 256;                   // further addresses are left out
};

// Literal addresses of `name`, with `port`; each once.
using ResolveName = std::function<absl::StatusOr<std::vector<std::string>>(
    const std::string& name, const std::string& port)>;

// By getaddrinfo(3). Of the families it finds, only that which it prefers: a leader that can be
// reached by IPv4 and by IPv6 is one leader.
absl::StatusOr<std::vector<std::string>> ResolveBySystem(const std::string& name,
                                                         const std::string& port);

// Whether `leader` is an address that needs no resolving: unix:/path, or a literal IPv4 or IPv6.
bool IsLiteralAddress(std::string_view leader);

// Keeps the list of leaders' addresses up to date. Names are resolved on a thread of its own, since
// that may take seconds.
class LeaderNames {
 public:
  // `on_change` hears the sorted addresses whenever they have changed; at first, within the
  // constructor, those that need no resolving. A name that cannot be resolved keeps the addresses
  // it had. Without names there is no thread.
  LeaderNames(LeaderNamesOptions options, ResolveName resolve,
              std::function<void(std::vector<std::string> addresses)> on_change);
  // Waits for a look that is under way.
  ~LeaderNames();
  LeaderNames(const LeaderNames&) = delete;
  LeaderNames& operator=(const LeaderNames&) = delete;

 private:
  struct Name {
    std::string text;  // as given
    std::string host;
    std::string port;
    std::vector<std::string> addresses;
    bool failing = false;  // said so
  };

  void Run();
  void Look(Name& name);
  void Tell();

  const LeaderNamesOptions options_;
  const ResolveName resolve_;
  const std::function<void(std::vector<std::string>)> on_change_;
  std::vector<std::string> literals_;
  std::vector<Name> names_;        // the thread's, once it runs
  std::vector<std::string> told_;  // likewise
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_LEADER_NAMES_H_
