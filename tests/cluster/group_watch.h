#ifndef FACET_TESTS_CLUSTER_GROUP_WATCH_H_
#define FACET_TESTS_CLUSTER_GROUP_WATCH_H_

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "client/connection.h"

namespace facet::testing {

// Follows what the routers say of their groups, 50 times a second on a thread of its own. A group
// is ready when some router that answers sees it ready. Thread-safe.
class GroupWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;

  // The routers serve `groups` groups, leaders at .../group<index>.sock. `connection` must outlive
  // the object.
  GroupWatch(const Connection& connection, int groups);
  ~GroupWatch();

  int groups() const { return static_cast<int>(groups_.size()); }
  bool ready(int group) const;
  // Sequences that it runs, of all routers.
  int running(int group) const;
  // When it was ready again: the end of its first time of not being so that began after `since`.
  // Nothing if that has not ended, or never began.
  std::optional<Time> ReadyAgain(int group, Time since) const;

 private:
  struct Change {
    Time at;
    bool ready = false;
  };
  struct Group {
    bool ready = false;
    int running = 0;
    std::vector<Change> changes;
  };

  void Watch();
  void Look();

  const Connection& connection_;
  std::atomic<bool> over_{false};
  mutable std::mutex mutex_;
  std::vector<Group> groups_;  // guarded by mutex_, but for its size
  std::thread thread_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_GROUP_WATCH_H_
