#ifndef FACET_TESTS_CLUSTER_CLUSTER_H_
#define FACET_TESTS_CLUSTER_CLUSTER_H_

// A real cluster on this host: a router and groups of worker processes, started with the flags
// users have.

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "facet/v1/inference.grpc.pb.h"
#include "tests/base/temp_folder.h"
#include "tests/cluster/process.h"

namespace facet::testing {

struct ClusterOptions {
  std::string model;
  int tensor_parallel = 1;
  int replicas = 1;
  std::vector<std::string> worker_flags;
  std::vector<std::string> router_flags;
};

class Cluster {
 public:
  // Returns once the router says that it serves. An error carries the logs.
  static absl::StatusOr<std::unique_ptr<Cluster>> Start(const ClusterOptions& options);

  const std::string& address() const { return address_; }  // of the router
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  v1::Inference::Stub& inference() { return *inference_; }
  v1::Status::Stub& status() { return *status_; }
  Process& router() { return *router_; }
  Process& worker(int replica, int rank) { return *workers_[replica][rank].process; }
  // Starts a rank that has ended again, with the same flags.
  absl::Status Restart(int replica, int rank);
  // Until the router sees every group ready. An error carries the logs.
  absl::Status AwaitServing();
  std::string Logs() const;

 private:
  Cluster() = default;
  absl::Status StartGroup(const ClusterOptions& options, int replica);
  absl::Status StartRouter(const ClusterOptions& options);
  absl::StatusOr<std::string> AwaitAddress(const std::string& path, Process& process);

  struct Worker {
    std::vector<std::string> command;
    std::string log_path;
    std::unique_ptr<Process> process;
  };

  TempFolder folder_;
  std::vector<std::vector<Worker>> workers_;
  std::vector<std::string> leaders_;
  std::unique_ptr<Process> router_;
  std::string address_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> inference_;
  std::unique_ptr<v1::Status::Stub> status_;
};

// Where the model files are (FACET_MODEL_DIR, else .cache/models): fails the test with the way to
// get them if the file is absent.
std::string ModelPath(const std::string& file);
inline constexpr char kGemmaFile[] = "gemma-3-270m-q4_k_m.gguf";
inline constexpr char kSmolLm2File[] = "SmolLM2-135M-Instruct.Q4_1.gguf";

}  // namespace facet::testing

#endif  // FACET_TESTS_CLUSTER_CLUSTER_H_
