#include "tests/cluster/launched_cluster.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/check.h"
#include "base/status.h"
#include "tests/cluster/http.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

constexpr seconds kReadyTimeout{180};
constexpr seconds kStopTimeout{120};
constexpr milliseconds kPoll{20};

std::string ReadFile(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

google::protobuf::Struct ReadState(const std::string& path) {
  google::protobuf::Struct state;
  const auto status = google::protobuf::util::JsonStringToMessage(ReadFile(path), &state);
  FACET_CHECK(status.ok(), "{}: {}", path, status.ToString());
  return state;
}

const google::protobuf::Value& Field(const google::protobuf::Struct& object, const char* name) {
  return object.fields().at(name);
}

bool Exists(pid_t pid) { return kill(pid, 0) == 0; }

}  // namespace

absl::StatusOr<std::unique_ptr<LaunchedCluster>> LaunchedCluster::Start(
    const LaunchOptions& options) {
  std::unique_ptr<LaunchedCluster> cluster(new LaunchedCluster);
  const std::string scratch = cluster->folder_.File("scratch");
  std::filesystem::create_directory(scratch);
  cluster->state_path_ = cluster->folder_.File("state.json");
  std::vector<std::string> command = {"/usr/bin/env",
                                      "TMPDIR=" + scratch,
                                      "XDG_CACHE_HOME=" + cluster->folder_.File("cache"),
                                      "python3",
                                      "deploy/local/cluster.py",
                                      "--bin=" FACET_BIN_DIR,
                                      "--model=" + options.model,
                                      fmt::format("--tp={}", options.tensor_parallel),
                                      fmt::format("--replicas={}", options.replicas),
                                      fmt::format("--routers={}", options.routers),
                                      fmt::format("--threads={}", options.threads),
                                      "--state=" + cluster->state_path_};
  for (const std::string& flag : options.worker_flags) command.push_back("--worker-flag=" + flag);
  for (const std::string& flag : options.router_flags) command.push_back("--router-flag=" + flag);
  FACET_ASSIGN_OR_RETURN(Process launcher,
                         Process::Spawn(command, cluster->folder_.File("launcher.log")));
  cluster->launcher_ = std::make_unique<Process>(std::move(launcher));
  FACET_RETURN_IF_ERROR(cluster->AwaitReady());
  return cluster;
}

absl::Status LaunchedCluster::AwaitReady() {
  for (const auto end = Clock::now() + kReadyTimeout; Clock::now() < end;) {
    if (std::filesystem::exists(state_path_)) {
      const google::protobuf::Struct state = ReadState(state_path_);
      if (Field(state, "ready").bool_value()) {
        for (const auto& endpoint : Field(state, "endpoints").list_value().values()) {
          endpoints_.push_back(endpoint.string_value());
        }
        return absl::OkStatus();
      }
    }
    if (!launcher_->running()) break;
    std::this_thread::sleep_for(kPoll);
  }
  return Unavailable("the launched cluster is not ready:\n{}", Log());
}

std::vector<ServerState> LaunchedCluster::Servers() {
  std::vector<ServerState> servers;
  const google::protobuf::Struct state = ReadState(state_path_);
  for (const auto& value : Field(state, "processes").list_value().values()) {
    const google::protobuf::Struct& process = value.struct_value();
    servers.push_back({.name = Field(process, "name").string_value(),
                       .pid = static_cast<pid_t>(Field(process, "pid").number_value()),
                       .starts = static_cast<int>(Field(process, "starts").number_value()),
                       .metrics = Field(process, "metrics").string_value()});
    const pid_t pid = servers.back().pid;
    if (pid != 0 && std::ranges::find(seen_, pid) == seen_.end()) seen_.push_back(pid);
  }
  return servers;
}

ServerState LaunchedCluster::Server(std::string_view name) {
  const std::vector<ServerState> servers = Servers();
  const auto found = std::ranges::find(servers, name, &ServerState::name);
  FACET_CHECK(found != servers.end(), "no server {}", name);
  return *found;
}

double LaunchedCluster::Metric(std::string_view name, std::string_view metric) {
  return SumOfMetric(HttpGet(Server(name).metrics), metric);
}

absl::Status LaunchedCluster::Stop() {
  Servers();
  launcher_->Signal(SIGINT);
  const std::optional<int> code = launcher_->Wait(kStopTimeout);
  if (!code) return DeadlineExceeded("the launcher does not end:\n{}", Log());
  if (*code != 0) return Internal("the launcher ended with {}:\n{}", *code, Log());
  if (Log().find("did not shut down cleanly") != std::string::npos) return Internal("{}", Log());
  return CheckNothingLeft();
}

absl::Status LaunchedCluster::CheckNothingLeft() const {
  for (const pid_t pid : seen_) {
    if (Exists(pid)) return Internal("process {} is left", pid);
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder_.File("scratch"))) {
    return Internal("{} is left", entry.path().string());
  }
  for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
    if (entry.path().filename().string().starts_with("facet")) {
      return Internal("{} is left", entry.path().string());
    }
  }
  // The sockets over which ranks find each other are called after their leader's process.
  const std::string sockets = ReadFile("/proc/net/unix");
  for (const pid_t pid : seen_) {
    if (sockets.find(fmt::format("@facet-{}-", pid)) != std::string::npos) {
      return Internal("a socket of process {} is left", pid);
    }
  }
  return absl::OkStatus();
}

}  // namespace facet::testing
