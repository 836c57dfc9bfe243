// A router alone: facet-router in a process of its own, before leaders that answer at once and
// behind clients that only count. Prints what the router's process time buys, which a loaded
// machine changes little, beside what the clock says. The router has the last processor to itself,
// the leaders and clients have the others: what it does per second is then what one core does.
//
//   router_bench [--seconds 5] [--streams 64] [--leaders 2] [--prompt_tokens 32]

#include <fmt/format.h>
#include <grpcpp/grpcpp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/synchronization/mutex.h"
#include "base/check.h"
#include "base/prng.h"
#include "checkpoint/gguf.h"
#include "client/percentiles.h"
#include "client/table.h"
#include "facet/v1/inference.grpc.pb.h"
#include "serving/flags.h"
#include "tests/base/temp_folder.h"
#include "tests/services/fake_leader.h"
#include "tests/services/tiny_model.h"

ABSL_FLAG(double, seconds, 5, "Seconds of each measurement.");
ABSL_FLAG(int, streams, 64, "Requests that run at the same time.");
ABSL_FLAG(int, channels, 4, "Connections that they share.");
ABSL_FLAG(int, leaders, 2, "Fake leaders.");
ABSL_FLAG(int, prompt_tokens, 32, "Token ids per prompt.");
ABSL_FLAG(std::string, router, "", "The facet-router to measure; default: the one beside this.");
ABSL_FLAG(std::string, serve_leaders, "", "Internal: be the leaders, with sockets in this folder.");

namespace facet::testing {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

std::string SocketOf(const std::string& folder, int leader) {
  return fmt::format("unix:{}/leader{}.sock", folder, leader);
}

// The leaders' process: each sequence's next token is a hash of its seed and position.
[[noreturn]] void ServeLeaders(const std::string& folder) {
  const auto model = GgufModel::Open(folder + "/tiny.gguf");
  FACET_CHECK(model.ok(), "{}", model.status().ToString());
  v1::ModelInfo info;
  info.set_name("tiny");
  info.set_context_tokens(kContext);
  info.set_vocabulary_size(kVocabularySize);
  info.set_digest(model->digest());
  info.set_fingerprint("fake");
  std::vector<std::unique_ptr<FakeLeader>> leaders;
  for (int i = 0; i < absl::GetFlag(FLAGS_leaders); ++i) {
    leaders.push_back(
        std::make_unique<FakeLeader>(FakeLeader::Options{.address = SocketOf(folder, i),
                                                         .model = info,
                                                         .credit_tokens = int64_t{1} << 40,
                                                         .script = Letters(),
                                                         .remembers_submits = false}));
  }
  for (;;) pause();
}

// The processors that this process may use: all but the last of them, and the last.
struct Processors {
  cpu_set_t others, last;
};

Processors SplitProcessors() {
  Processors split;
  CPU_ZERO(&split.last);
  FACET_CHECK(sched_getaffinity(0, sizeof split.others, &split.others) == 0);
  FACET_CHECK(CPU_COUNT(&split.others) > 1, "a single processor cannot be shared out");
  int last = CPU_SETSIZE - 1;
  while (!CPU_ISSET(last, &split.others)) --last;
  CPU_SET(last, &split.last);
  CPU_CLR(last, &split.others);
  return split;
}

// A child that does not outlive this process.
class Child {
 public:
  Child(std::vector<std::string> command, const cpu_set_t& processors) {
    std::vector<char*> argv;
    for (std::string& word : command) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_ = fork();
    FACET_CHECK(pid_ >= 0);
    if (pid_ > 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    sched_setaffinity(0, sizeof processors, &processors);
    execv(argv[0], argv.data());
    _exit(127);
  }
  ~Child() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Process time it has used.
  double CpuSeconds() const {
    clockid_t clock;
    timespec time{};
    FACET_CHECK(clock_getcpuclockid(pid_, &clock) == 0 && clock_gettime(clock, &time) == 0);
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
  }

 private:
  pid_t pid_;
};

struct Load {
  const char* name;
  int streams;
  int max_tokens;
};

struct Counts {
  int64_t requests = 0;
  int64_t tokens = 0;
  int64_t failures = 0;
  std::vector<double> first_token_ms;  // after the request
};

// Streams that ask again as soon as they are answered, until the time is up.
class Clients {
 public:
  Clients(const std::vector<std::unique_ptr<v1::Inference::Stub>>& stubs, const Load& load)
      : stubs_(stubs), load_(load) {}

  // Returns when every stream has ended.
  Counts Run(Clock::duration duration) {
    over_at_ = Clock::now() + duration;
    running_ = load_.streams;
    for (int i = 0; i < load_.streams; ++i) new Stream(*this, static_cast<uint64_t>(i));
    absl::MutexLock lock(&mutex_);
    const auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return running_ == 0; };
    mutex_.Await(absl::Condition(&done));
    return std::move(counts_);
  }

 private:
  class Stream : public grpc::ClientReadReactor<v1::GenerateResponse> {
   public:
    Stream(Clients& clients, uint64_t number) : clients_(clients), number_(number) {
      request_.set_max_tokens(clients.load_.max_tokens);
      request_.set_ignore_eos(true);
      request_.set_seed(number);
      v1::TokenIds& ids = *request_.add_prompts()->mutable_tokens();
      for (int i = 0; i < absl::GetFlag(FLAGS_prompt_tokens); ++i) {
        ids.add_ids(static_cast<int>(Mix64(number, i) % kVocabularySize));
      }
      auto& stub = *clients.stubs_[number % clients.stubs_.size()];
      sent_ = Clock::now();
      stub.async()->Generate(&context_, &request_, this);
      StartRead(&response_);
      StartCall();
    }

   private:
    void OnReadDone(bool ok) override {
      if (!ok) return;
      for (const v1::Delta& delta : response_.deltas()) tokens_ += delta.tokens_size();
      if (tokens_ > 0 && first_token_ms_ == 0) {
        first_token_ms_ = Seconds(Clock::now() - sent_) * 1e3;
      }
      StartRead(&response_);
    }
    void OnDone(const grpc::Status& status) override {
      clients_.Note(*this, status);
      delete this;
    }

    friend class Clients;
    Clients& clients_;
    const uint64_t number_;
    grpc::ClientContext context_;
    v1::GenerateRequest request_;
    v1::GenerateResponse response_;
    Clock::time_point sent_;
    int64_t tokens_ = 0;
    double first_token_ms_ = 0;
  };

  void Note(const Stream& stream, const grpc::Status& status) {
    const bool whole = status.ok() && stream.tokens_ == load_.max_tokens;
    bool again = true;
    {
      absl::MutexLock lock(&mutex_);
      again = Clock::now() < over_at_;
      counts_.requests += whole;
      counts_.failures += !whole;
      counts_.tokens += stream.tokens_;
      counts_.first_token_ms.push_back(stream.first_token_ms_);
      running_ -= !again;
    }
    if (again) new Stream(*this, stream.number_ + static_cast<uint64_t>(load_.streams));
  }

  const std::vector<std::unique_ptr<v1::Inference::Stub>>& stubs_;
  const Load& load_;
  Clock::time_point over_at_;
  absl::Mutex mutex_;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
  Counts counts_ ABSL_GUARDED_BY(mutex_);
};

std::vector<std::unique_ptr<v1::Inference::Stub>> Connect(const std::string& address) {
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;
  for (int i = 0; i < absl::GetFlag(FLAGS_channels); ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    stubs.push_back(v1::Inference::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments)));
  }
  return stubs;
}

void AwaitReady(const std::string& address, int leaders) {
  const auto status =
      v1::Status::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  for (int attempt = 0; attempt < 2000; ++attempt) {
    grpc::ClientContext context;
    context.set_wait_for_ready(true);
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    v1::GetStatusResponse response;
    if (status->GetStatus(&context, {}, &response).ok() &&
        std::count_if(response.groups().begin(), response.groups().end(),
                      [](const auto& group) { return group.ready(); }) == leaders) {
      return;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FACET_CHECK(false, "the router does not see its {} leaders", leaders);
}

int Measure() {
  const TempFolder folder;
  WriteTinyModel(folder.File("tiny.gguf"));
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const int leaders = absl::GetFlag(FLAGS_leaders);
  const Processors processors = SplitProcessors();
  FACET_CHECK(sched_setaffinity(0, sizeof processors.others, &processors.others) == 0);
  const Child leader_process(
      {self, "--serve_leaders=" + folder.File(""), fmt::format("--leaders={}", leaders)},
      processors.others);
  std::string router = absl::GetFlag(FLAGS_router);
  if (router.empty()) router = std::filesystem::path(self).parent_path() / "facet-router";
  std::string addresses;
  for (int i = 0; i < leaders; ++i) addresses += (i == 0 ? "" : ",") + SocketOf(folder.File(""), i);
  const std::string address = "unix:" + folder.File("router.sock");
  const Child router_process(
      {router, "--model=" + folder.File("tiny.gguf"), "--leaders=" + addresses,
       "--listen=" + address, "--log_level=warning"},
      processors.last);
  AwaitReady(address, leaders);
  const auto stubs = Connect(address);
  const int streams = absl::GetFlag(FLAGS_streams);
  const Load loads[] = {
      {"warm-up", streams, 16},
      {"one at a time", 1, 1},
      {"requests of 1 token", streams, 1},
      {"requests of 16", streams, 16},
      {"streams of 512", streams, 512},
      {"4 x the streams", 4 * streams, 512},
  };
  Table table({"LOAD", "STREAMS", "REQUESTS/S", "TOKENS/S", "ROUTER CPU", "REQUESTS/CPU S",
               "TOKENS/CPU S", "US/REQUEST", "US/TOKEN", "FIRST TOKEN P50 MS", "P99"});
  int64_t failures = 0;
  for (const Load& load : loads) {
    const double cpu_before = router_process.CpuSeconds();
    const Clock::time_point begin = Clock::now();
    const auto duration = std::chrono::duration<double>(absl::GetFlag(FLAGS_seconds));
    Counts counts = Clients(stubs, load).Run(std::chrono::duration_cast<Clock::duration>(duration));
    const double wall = Seconds(Clock::now() - begin);
    const double cpu = router_process.CpuSeconds() - cpu_before;
    failures += counts.failures;
    if (&load == &loads[0]) continue;
    const auto requests = static_cast<double>(counts.requests);
    const auto tokens = static_cast<double>(counts.tokens);
    const Percentiles first = PercentilesOf(std::move(counts.first_token_ms));
    table.AddRow({load.name, fmt::format("{}", load.streams),
                  fmt::format("{:.0f}", requests / wall), fmt::format("{:.0f}", tokens / wall),
                  fmt::format("{:.2f} cores", cpu / wall), fmt::format("{:.0f}", requests / cpu),
                  fmt::format("{:.0f}", tokens / cpu), fmt::format("{:.1f}", cpu / requests * 1e6),
                  fmt::format("{:.2f}", cpu / tokens * 1e6), fmt::format("{:.2f}", first.p50),
                  fmt::format("{:.2f}", first.p99)});
  }
  fmt::print("{}{} requests failed\n", table.Render(), failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace facet::testing

int main(int argc, char** argv) {
  facet::ParseFlagsOrExit(argc, argv,
                          "router_bench measures a facet-router alone, with fake leaders and "
                          "clients that only count.",
                          0);
  const std::string folder = absl::GetFlag(FLAGS_serve_leaders);
  if (!folder.empty()) facet::testing::ServeLeaders(folder);
  return facet::testing::Measure();
}
