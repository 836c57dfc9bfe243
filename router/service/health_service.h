#ifndef FACET_ROUTER_SERVICE_HEALTH_SERVICE_H_
#define FACET_ROUTER_SERVICE_HEALTH_SERVICE_H_

#include <functional>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "router/service/call_acceptor.h"
#include "router/service/live_calls.h"

namespace facet {

struct HealthOptions {
  // Streams that are told of changes; more are refused. A client that checks health has one per
  // connection, and takes a refusal for a router that is broken.
  int watches_max = 4096;
};

// gRPC's health service: which services take calls. gRPC has one itself, but of its callback
// interface, whose threads would take turns at the sockets with the core's. Thread-safe.
class HealthService : public grpc::health::v1::Health::AsyncService {
 public:
  // `services` do not serve yet; all others are unknown until Set(). "" is the process as a whole.
  HealthService(const HealthOptions& options, std::initializer_list<std::string_view> services);

  void Set(std::string_view service, bool serving) ABSL_LOCKS_EXCLUDED(mutex_);
  // No service takes calls any more, whatever Set() says after this.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_);

  // REQUIRES: this outlives the acceptor, and lives until no call is live.
  std::vector<AcceptedMethod> Methods();
  // Of this service alone: a stream of Watch has no end of its own, and no drain waits for it.
  LiveCalls& live_calls() { return live_calls_; }

 private:
  class Watch;  // touched under the lock
  using Status = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // The lock is held.
  Status StatusOf(const std::string& service) const ABSL_NO_THREAD_SAFETY_ANALYSIS;
  // To a Check.
  grpc::Status Answer(const std::string& service,
                      grpc::health::v1::HealthCheckResponse& response) const
      ABSL_LOCKS_EXCLUDED(mutex_);

  const HealthOptions options_;
  LiveCalls live_calls_;
  mutable absl::Mutex mutex_;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<std::string, bool, std::less<>> serving_ ABSL_GUARDED_BY(mutex_);
  std::set<Watch*> watches_ ABSL_GUARDED_BY(mutex_);  // that are told
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_HEALTH_SERVICE_H_
