// A group whose ranks are on two hosts: network namespaces with a virtual cable between them. Needs
// the right to make such, and `ip`; else it is skipped.

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>

#include "base/status.h"
#include "tests/base/patience.h"
#include "tests/cluster/answers.h"
#include "tests/cluster/cluster.h"

namespace facet::testing {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTokens = 60;

bool Shell(const std::string& command) {
  return std::system(("(" + command + ") 2>/dev/null").c_str()) == 0;
}

// Two namespaces, 10.77.0.1 and 10.77.0.2, that go with the object.
class Hosts {
 public:
  Hosts() {
    made_ =
        Shell(fmt::format("ip netns add {0} && ip netns add {1} && "
                          "ip link add wire netns {0} type veth peer name wire netns {1}",
                          name(0), name(1)));
    for (int host = 0; host < 2; ++host) {
      made_ = made_ && Shell(fmt::format("ip -n {0} addr add 10.77.0.{1}/24 dev wire && "
                                         "ip -n {0} link set wire up && ip -n {0} link set lo up",
                                         name(host), host + 1));
    }
  }
  ~Hosts() {
    for (int host = 0; host < 2; ++host) Shell(fmt::format("ip netns del {}", name(host)));
  }

  bool made() const { return made_; }
  // A command line that runs `binary` on the host.
  std::vector<std::string> On(int host, const std::string& binary,
                              std::vector<std::string> flags) const {
    std::vector<std::string> command = {"/usr/bin/env", "ip",
                                        "netns",        "exec",
                                        name(host),     std::string(FACET_BIN_DIR) + "/" + binary};
    command.insert(command.end(), flags.begin(), flags.end());
    return command;
  }

 private:
  static std::string name(int host) { return fmt::format("facet-{}-{}", getpid(), host); }
  bool made_ = false;
};

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  request.add_prompts()->set_text("The harbour lay still, and");
  request.set_max_tokens(kTokens);
  request.set_ignore_eos(true);
  request.set_seed(5);
  request.mutable_sampling()->set_temperature(1);
  request.set_logprobs(1);
  return request;
}

// Asks twice, for the first answer may be a late one, and says what a token took.
absl::StatusOr<Answer> TimedAnswer(const char* over, const std::string& endpoint) {
  Connection connection(ConnectionOptions{.endpoints = {endpoint}});
  FACET_RETURN_IF_ERROR(Ask(connection, Request()).status());
  const Clock::time_point begin = Clock::now();
  absl::StatusOr<Answer> answer = Ask(connection, Request());
  const std::chrono::duration<double, std::milli> took = Clock::now() - begin;
  std::printf("over %s: %.2f ms per token\n", over, took.count() / kTokens);
  return answer;
}

TEST(TwoHosts, AnswerAsOneHostDoes) {
  const Hosts hosts;
  if (!hosts.made()) GTEST_SKIP() << "this user may not make network namespaces";
  const std::string model = ModelPath(kGemmaFile);
  const TempFolder folder;
  const std::string endpoint = "unix:" + folder.File("router.sock");
  const std::vector<std::string> common = {"--model=" + model, "--world=2", "--threads=1",
                                           "--kv_tokens=4096",
                                           "--packed_cache=" + folder.File("packed")};
  const auto spawn = [&](int host, const std::string& name, const std::string& binary,
                         std::vector<std::string> flags) {
    auto process =
        Process::Spawn(hosts.On(host, binary, std::move(flags)), folder.File(name + ".log"));
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  };
  std::vector<std::string> leader_flags = common;
  leader_flags.insert(leader_flags.end(), {"--rank=0", "--listen=0.0.0.0:8480"});
  std::vector<std::string> follower_flags = common;
  follower_flags.insert(follower_flags.end(), {"--rank=1", "--leader=10.77.0.1:8480"});
  Process leader = spawn(0, "leader", "facet-worker", leader_flags);
  Process follower = spawn(1, "follower", "facet-worker", follower_flags);
  Process router = spawn(0, "router", "facet-router",
                         {"--model=" + model, "--leaders=10.77.0.1:8480", "--listen=" + endpoint});
  const auto tcp = TimedAnswer("tcp between two namespaces", endpoint);
  ASSERT_TRUE(tcp.ok()) << tcp.status() << leader.Log() << follower.Log() << router.Log();
  EXPECT_NE(leader.Log().find("attached over tcp"), std::string::npos) << leader.Log();
  leader.Signal(SIGTERM);
  EXPECT_EQ(leader.Wait(kLong), 0) << leader.Log();
  EXPECT_EQ(follower.Wait(kLong), 0) << follower.Log();

  ClusterOptions options;
  options.model = model;
  options.tensor_parallel = 2;
  options.worker_flags = {"--threads=1", "--kv_tokens=4096"};
  auto cluster = Cluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const auto shm = TimedAnswer("shm", (*cluster)->address());
  ASSERT_TRUE(shm.ok()) << shm.status();
  EXPECT_EQ(Difference(*shm, *tcp), "");
}

}  // namespace
}  // namespace facet::testing
