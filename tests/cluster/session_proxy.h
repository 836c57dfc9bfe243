#ifndef FACET_TESTS_CLUSTER_SESSION_PROXY_H_
#define FACET_TESTS_CLUSTER_SESSION_PROXY_H_

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "facet/v1/shard.grpc.pb.h"
#include "serving/grpc_server.h"

namespace facet::testing {

// Decides at which output token a session is cut. Thread-safe; one request at a time runs through
// the proxies that share it.
class SessionCutter {
 public:
  enum class Verdict { kPass, kCut, kPassAndCut };

  // Cuts once, at the message that brings output token `token`: before the router gets it, or right
  // after (`deliver`).
  void Arm(int token, bool deliver);
  // Whether it has cut since it was armed.
  bool has_cut() const;
  Verdict Judge(const v1::LeaderMessage& message);

 private:
  struct Order {
    int token;
    bool deliver;
  };

  mutable std::mutex mutex_;
  std::optional<Order> order_;  // guarded by mutex_
  bool has_cut_ = false;        // guarded by mutex_
};

// Stands between routers and a leader: hands on what they say to each other, until the cutter ends
// a session with UNAVAILABLE, as a leader that dies does. The leader loses its session, too; the
// next one is let through.
class SessionProxy {
 public:
  // Listens on `listen` for the leader at `leader`. `cutter` must outlive the object.
  static absl::StatusOr<std::unique_ptr<SessionProxy>> Start(const std::string& listen,
                                                             const std::string& leader,
                                                             SessionCutter* cutter);
  ~SessionProxy();

 private:
  class Service;
  explicit SessionProxy(std::unique_ptr<Service> service);

  std::unique_ptr<Service> service_;
  RunningServer running_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_SESSION_PROXY_H_
