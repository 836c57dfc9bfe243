#ifndef FACET_TESTS_CLUSTER_LAUNCHED_CLUSTER_H_
#define FACET_TESTS_CLUSTER_LAUNCHED_CLUSTER_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/base/temp_folder.h"
#include "tests/cluster/process.h"

namespace facet::testing {

struct LaunchOptions {
  std::string model;
  int tensor_parallel = 2;
  int replicas = 2;
  int routers = 2;
  int threads = 1;  // per rank
  std::vector<std::string> worker_flags;
  std::vector<std::string> router_flags;
};

// One server as the launcher's state file tells of it.
struct ServerState {
  std::string name;  // "worker-<group>-<rank>", "router-<index>"
  pid_t pid = 0;     // 0 while it is down
  int starts = 0;
  std::string metrics;  // URL
};

// A cluster that deploy/local/cluster.py runs: what dies or hangs is started again at the same
// address. Ends with the object.
class LaunchedCluster {
 public:
  // Returns once every router sees every group ready. An error carries the logs.
  static absl::StatusOr<std::unique_ptr<LaunchedCluster>> Start(const LaunchOptions& options);

  const std::vector<std::string>& endpoints() const { return endpoints_; }  // of the routers
  // As they are now; remembers the process ids.
  std::vector<ServerState> Servers();
  // REQUIRES that there is a server of this name.
  ServerState Server(std::string_view name);
  // What Prometheus would read: the sum over all label sets of `metric`, or 0 if the server does
  // not answer or knows no such metric.
  double Metric(std::string_view name, std::string_view metric);

  // Ends it as Ctrl-C does. OK if it and all that it started ended well and nothing is left: no
  // process that Servers() ever told of, no file, no socket, no shared memory.
  absl::Status Stop();
  // What the launcher said.
  std::string Log() const { return launcher_->Log(); }

 private:
  LaunchedCluster() = default;
  absl::Status AwaitReady();
  absl::Status CheckNothingLeft() const;

  TempFolder folder_;
  std::string state_path_;
  std::unique_ptr<Process> launcher_;
  std::vector<std::string> endpoints_;
  std::vector<pid_t> seen_;  // every process id of a server
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_LAUNCHED_CLUSTER_H_
