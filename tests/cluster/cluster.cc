#include "tests/cluster/cluster.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/status.h"
#include "serving/grpc_channel.h"

namespace facet::testing {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kStartTimeout{180};

std::string Binary(const std::string& name) { return std::string(FACET_BIN_DIR) + "/" + name; }

}  // namespace

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(const ClusterOptions& options) {
  std::unique_ptr<Cluster> cluster(new Cluster);
  for (int replica = 0; replica < options.replicas; ++replica) {
    FACET_RETURN_IF_ERROR(cluster->StartGroup(options, replica));
  }
  FACET_RETURN_IF_ERROR(cluster->StartRouter(options));
  FACET_RETURN_IF_ERROR(cluster->AwaitServing());
  return cluster;
}

absl::Status Cluster::StartGroup(const ClusterOptions& options, int replica) {
  const std::string prefix = folder_.File(fmt::format("group{}", replica));
  const std::string leader = "unix:" + prefix + ".sock";
  std::vector<Worker>& ranks = workers_.emplace_back();
  for (int rank = 0; rank < options.tensor_parallel; ++rank) {
    std::vector<std::string> command = {
        Binary("facet-worker"), "--model=" + options.model, fmt::format("--rank={}", rank),
        fmt::format("--world={}", options.tensor_parallel), "--metrics_port=0",
        "--packed_cache=" + folder_.File("packed")};
    command.push_back((rank == 0 ? "--listen=" : "--leader=") + leader);
    command.insert(command.end(), options.worker_flags.begin(), options.worker_flags.end());
    ranks.push_back({.command = std::move(command),
                     .log_path = fmt::format("{}-rank{}.log", prefix, rank)});
    FACET_RETURN_IF_ERROR(Restart(replica, rank));
  }
  leaders_.push_back(leader);
  return absl::OkStatus();
}

absl::Status Cluster::Restart(int replica, int rank) {
  Worker& worker = workers_[replica][rank];
  FACET_ASSIGN_OR_RETURN(Process process, Process::Spawn(worker.command, worker.log_path));
  worker.process = std::make_unique<Process>(std::move(process));
  return absl::OkStatus();
}

absl::Status Cluster::StartRouter(const ClusterOptions& options) {
  const std::string address_file = folder_.File("router.address");
  std::vector<std::string> command = {
      Binary("facet-router"), "--model=" + options.model,
      fmt::format("--leaders={}", fmt::join(leaders_, ",")), "--listen=127.0.0.1:0",
      "--metrics_port=0", "--address_file=" + address_file};
  command.insert(command.end(), options.router_flags.begin(), options.router_flags.end());
  FACET_ASSIGN_OR_RETURN(Process process,
                         Process::Spawn(command, folder_.File("router.log")));
  router_ = std::make_unique<Process>(std::move(process));
  FACET_ASSIGN_OR_RETURN(address_, AwaitAddress(address_file, *router_));
  channel_ = MakeChannel(address_);
  inference_ = v1::Inference::NewStub(channel_);
  status_ = v1::Status::NewStub(channel_);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Cluster::AwaitAddress(const std::string& path, Process& process) {
  for (const auto end = Clock::now() + kStartTimeout; Clock::now() < end;) {
    std::ifstream in(path);
    if (std::string address; std::getline(in, address)) return address;
    if (!process.running()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return Unavailable("no address in {}:\n{}", path, Logs());
}

absl::Status Cluster::AwaitServing() {
  std::string last = "nothing";
  for (const auto end = Clock::now() + kStartTimeout; Clock::now() < end;) {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    const grpc::Status status = status_->GetStatus(&context, {}, &response);
    size_t ready = 0;
    for (const v1::GroupStatus& group : response.groups()) ready += group.ready() ? 1 : 0;
    if (status.ok() && ready == workers_.size()) return absl::OkStatus();
    last = status.ok() ? response.ShortDebugString() : status.error_message();
    for (const auto& ranks : workers_) {
      for (const Worker& rank : ranks) {
        if (!rank.process->running()) return Unavailable("a worker ended at start:\n{}", Logs());
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return Unavailable("the cluster is not ready, last: {}\n{}", last, Logs());
}

std::string Cluster::Logs() const {
  std::string logs;
  for (const auto& ranks : workers_) {
    for (const Worker& rank : ranks) logs += rank.process->Log();
  }
  if (router_ != nullptr) logs += router_->Log();
  return logs;
}

std::string ModelPath(const std::string& file) {
  const char* directory = std::getenv("FACET_MODEL_DIR");
  const std::string path = std::string(directory != nullptr ? directory : ".cache/models") + "/" + file;
  if (!std::filesystem::exists(path)) {
    ADD_FAILURE() << path << " is missing: run tests/run.sh, or deploy/local/fetch_models.sh";
  }
  return path;
}

}  // namespace facet::testing
