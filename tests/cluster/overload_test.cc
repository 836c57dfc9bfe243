// What users see when far too much arrives: real processes, real Gemma 3 270M. Figures are printed;
// asserted is what must hold at any speed.
//
// FACET_LOAD_SECONDS is the length of each phase (60: the whole form).

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <numeric>
#include <thread>

#include "absl/strings/match.h"
#include "base/prng.h"
#include "base/status.h"
#include "client/percentiles.h"
#include "tests/cluster/cluster.h"
#include "tests/cluster/traffic.h"

namespace facet::testing {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr int kPromptTokens = 48;
constexpr int kOutputTokens = 32;

double PhaseSeconds() {
  const char* text = std::getenv("FACET_LOAD_SECONDS");
  return text == nullptr ? 6 : std::atof(text);
}

bool IsWhole() { return PhaseSeconds() >= 60; }

// `phase` keeps the prompts of phases apart, so that nothing is cached of one for another.
MakeRequest Fresh(uint64_t phase, int prompt_tokens = kPromptTokens,
                  int output_tokens = kOutputTokens) {
  return [=](uint64_t number) {
    return DrawnRequest(0, 0, prompt_tokens, Mix64(phase, number), output_tokens);
  };
}

std::vector<double> Of(const std::vector<Exchange>& exchanges, double Exchange::*field) {
  std::vector<double> values;
  for (const Exchange& exchange : exchanges) {
    if (exchange.status.ok()) values.push_back(exchange.*field);
  }
  return values;
}

std::string Describe(const std::vector<double>& seconds) {
  const Percentiles p = PercentilesOf(seconds);
  return fmt::format("p50 {:.3f} s, p99 {:.3f} s of {}", p.p50, p.p99, seconds.size());
}

// Output tokens per second of requests that were answered whole, from the tenth part of `seconds`
// after `start` (the batch has filled by then) to the end of them. A request's tokens are taken to
// be spread evenly between its first and its last.
double Goodput(const std::vector<Exchange>& exchanges, ClientClock::time_point start,
               double seconds) {
  const double begin = seconds / 10;
  double tokens = 0;
  for (const Exchange& exchange : exchanges) {
    if (!exchange.status.ok()) continue;
    const double first = duration<double>(exchange.sent - start).count() + exchange.ttft_s;
    const double last = duration<double>(exchange.ended - start).count();
    const double inside = std::min(last, seconds) - std::clamp(first, begin, seconds);
    if (inside > 0) tokens += std::ssize(exchange.tokens) * inside / (last - first);
  }
  return tokens / (seconds - begin);
}

class Load : public ::testing::Test {
 protected:
  void Start(std::vector<std::string> router_flags, std::vector<std::string> worker_flags) {
    // A processor stays free for the clients and the router: what they use is not the capacity of
    // the group, and ranks that wait for each other lose twice what is taken from one of them.
    ranks_ = std::clamp(static_cast<int>(std::thread::hardware_concurrency()) - 1, 1, 2);
    ClusterOptions options;
    options.model = ModelPath(kGemmaFile);
    options.tensor_parallel = ranks_;
    options.router_flags = std::move(router_flags);
    options.worker_flags = std::move(worker_flags);
    options.worker_flags.push_back("--threads=1");
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
  }

  std::unique_ptr<Connection> Connect(const std::string& tenant = "",
                                      std::optional<milliseconds> timeout = {}) {
    return std::make_unique<Connection>(ConnectionOptions{.endpoints = {cluster_->address()},
                                                          .tenant = tenant,
                                                          .timeout = timeout,
                                                          .retry = {.limit = milliseconds(0)},
                                                          .keepalive_timeout = seconds(60)});
  }

  // Processor seconds so far: of these clients, of the router and of the ranks.
  struct Work {
    double clients = 0, router = 0, ranks = 0;
  };
  Work WorkSoFar() {
    double ranks = 0;
    for (const Process* rank : Ranks()) ranks += rank->CpuSeconds();
    rusage own;
    getrusage(RUSAGE_SELF, &own);
    const auto seconds = [](const timeval& time) { return time.tv_sec + time.tv_usec / 1e6; };
    return {seconds(own.ru_utime) + seconds(own.ru_stime), cluster_->router().CpuSeconds(), ranks};
  }
  std::string DescribeSince(const Work& before, double seconds) {
    const Work now = WorkSoFar();
    return fmt::format("processors used: clients {:.2f}, router {:.2f}, ranks {:.2f}",
                       (now.clients - before.clients) / seconds,
                       (now.router - before.router) / seconds,
                       (now.ranks - before.ranks) / seconds);
  }

  int64_t ResidentBytes() {
    int64_t bytes = cluster_->router().ResidentBytes();
    for (const Process* rank : Ranks()) bytes += rank->ResidentBytes();
    return bytes;
  }

  // Until `requests` have come, and none of them runs because nobody reads what is there of them.
  bool AwaitPaused(int requests) {
    constexpr int kLooks = 20;  // in a row: what the router knows of a group is up to 0.5 s old
    int quiet = 0;
    for (int attempt = 0; attempt < 6000 && quiet < kLooks; ++attempt) {
      grpc::ClientContext context;
      v1::GetStatusResponse status;
      if (!cluster_->status().GetStatus(&context, {}, &status).ok()) return false;
      const v1::GroupStatus& group = status.groups(0);
      const int64_t known = status.queued_requests() + status.running_requests();
      const bool paused = known >= requests && group.running() + group.waiting() == 0;
      quiet = paused ? quiet + 1 : 0;
      std::this_thread::sleep_for(milliseconds(100));
    }
    return quiet == kLooks;
  }

  std::vector<const Process*> Ranks() {
    std::vector<const Process*> ranks;
    for (int i = 0; i < ranks_; ++i) ranks.push_back(&cluster_->worker(0, i));
    return ranks;
  }

  int ranks_ = 0;
  std::unique_ptr<Cluster> cluster_;
};

// Every request is answered whole or refused at once, with a time to come back at.
void ExpectAnswersOrRefusals(const std::vector<Exchange>& exchanges) {
  for (const Exchange& exchange : exchanges) {
    if (exchange.status.ok()) {
      EXPECT_EQ(exchange.tokens.size(), size_t{kOutputTokens});
    } else {
      EXPECT_EQ(exchange.status.code(), absl::StatusCode::kResourceExhausted) << exchange.status;
      EXPECT_TRUE(exchange.retry_delay.has_value()) << exchange.status;
      EXPECT_THAT(exchange.tokens, ::testing::IsEmpty());
    }
  }
}

// How long refusals took: of requests that were queued and not begun in time, or of the others.
std::vector<double> RefusalSeconds(const std::vector<Exchange>& exchanges, bool queued) {
  std::vector<double> seconds;
  for (const Exchange& exchange : exchanges) {
    const bool waited = absl::StrContains(exchange.status.message(), "no group has begun it");
    if (!exchange.status.ok() && waited == queued) seconds.push_back(exchange.seconds());
  }
  return seconds;
}

TEST_F(Load, AtFiveTimesTheCapacityWhatIsAdmittedIsServed) {
  constexpr double kTargetSeconds = 1.0;
  ASSERT_NO_FATAL_FAILURE(Start({fmt::format("--ttft_target_ms={}", kTargetSeconds * 1000)}, {}));
  const std::unique_ptr<Connection> connection = Connect();
  const double seconds = PhaseSeconds();

  const auto alone = RunClosedLoop(*connection, 1, duration<double>(seconds / 6), Fresh(1));
  const double normal_ttft = PercentilesOf(Of(alone, &Exchange::ttft_s)).p50;
  // Closed-loop tokens per second, in a phase of half the length.
  const auto serve = [&](int streams, uint64_t phase) {
    const auto start = ClientClock::now();
    const Work work = WorkSoFar();
    const auto served =
        RunClosedLoop(*connection, streams, duration<double>(seconds / 2), Fresh(phase));
    const double goodput = Goodput(served, start, seconds / 2);
    fmt::print("{} streams: {:.0f} tokens/s; {}\n", streams, goodput,
               DescribeSince(work, duration<double>(ClientClock::now() - start).count()));
    return goodput;
  };
  double peak = 0;
  int peak_streams = 0;
  for (const int streams : {32, 64, 96}) {
    const double goodput = serve(streams, static_cast<uint64_t>(streams));
    if (goodput > peak) peak_streams = streams;
    peak = std::max(peak, goodput);
  }

  const double per_second = 5 * peak / kOutputTokens;
  const auto start = ClientClock::now();
  const Work work = WorkSoFar();
  std::atomic<int64_t> early_bytes{0};
  std::thread weigh([&] {
    std::this_thread::sleep_for(duration<double>(seconds / 3));
    early_bytes = ResidentBytes();
  });
  const auto flood = RunOpenLoop(*connection, per_second, duration<double>(seconds), Fresh(2));
  const std::string processors =
      DescribeSince(work, duration<double>(ClientClock::now() - start).count());
  weigh.join();
  const int64_t late_bytes = ResidentBytes();
  const double goodput = Goodput(flood, start, seconds);
  double recovery = 0;  // since the end of the flood
  for (uint64_t number = 0;; ++number) {
    const Exchange probe = Serve(*connection, Fresh(3)(number));
    recovery = duration<double>(probe.ended - start).count() - seconds;
    if (probe.status.ok() && probe.ttft_s <= 2 * normal_ttft) break;
    ASSERT_LT(recovery, 300) << "it does not come back to normal";
  }
  const double peak_again = serve(peak_streams, 4);  // the machine may have changed meanwhile

  fmt::print("peak {:.0f} and again {:.0f} tokens/s; {:.1f} requests/s offered\n", peak, peak_again,
             per_second);
  fmt::print("goodput {:.0f} tokens/s, {:.2f} of the mean peak (target 0.95); {}\n", goodput,
             2 * goodput / (peak + peak_again), processors);
  fmt::print("admitted: time to first token {} (target p99 {})\n",
             Describe(Of(flood, &Exchange::ttft_s)), 2 * kTargetSeconds);
  fmt::print("refused at once: {} (target 0.01)\n", Describe(RefusalSeconds(flood, false)));
  fmt::print("refused after they had waited for the whole target: {}\n",
             Describe(RefusalSeconds(flood, true)));
  fmt::print("resident {:.0f} MB, at the end {:.0f} MB\n", early_bytes / 1e6, late_bytes / 1e6);
  fmt::print("normal again after {:.2f} s (target 10)\n", recovery);
  ExpectAnswersOrRefusals(flood);
  EXPECT_GT(goodput, 0);
  EXPECT_LT(late_bytes, early_bytes * 5 / 4 + (int64_t{32} << 20)) << "memory grows";
  int checked = 0;  // what was admitted in the flood was right
  for (const Exchange& exchange : flood) {
    if (!exchange.status.ok() || ++checked > 10) continue;
    EXPECT_EQ(Serve(*connection, Fresh(2)(exchange.number)).tokens, exchange.tokens);
  }
}

TEST_F(Load, OneHeavyTenantLeavesNineLightOnesTheirShare) {
  ASSERT_NO_FATAL_FAILURE(Start({}, {}));
  const duration<double> phase(PhaseSeconds());
  std::vector<std::unique_ptr<Connection>> tenants;
  for (int i = 0; i < 9; ++i) tenants.push_back(Connect(fmt::format("light-{}", i)));
  const auto heavy_tenant = Connect("heavy", seconds(60));
  const auto light = [&](uint64_t round) {
    std::vector<std::vector<Exchange>> of(9);
    std::vector<std::thread> threads;
    for (int i = 0; i < 9; ++i) {
      threads.emplace_back([&, i] {
        of[i] =
            RunClosedLoop(*tenants[i], 1, phase, Fresh(Mix64(round, i), 64, 16), milliseconds(200));
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::vector<Exchange> all;
    for (const auto& exchanges : of) all.insert(all.end(), exchanges.begin(), exchanges.end());
    return all;
  };
  const std::vector<Exchange> before = light(1);
  std::vector<Exchange> heavy;
  std::thread flood([&] {
    heavy = RunClosedLoop(*heavy_tenant, IsWhole() ? 100 : 12, phase, Fresh(2, 256, 64));
  });
  const std::vector<Exchange> beside = light(3);
  flood.join();
  const std::vector<double> ttft_before = Of(before, &Exchange::ttft_s);
  const std::vector<double> ttft_beside = Of(beside, &Exchange::ttft_s);
  fmt::print("nine light tenants: {}; beside a heavy one: {}; p99 ratio {:.2f} (target 2)\n",
             Describe(ttft_before), Describe(ttft_beside),
             PercentilesOf(ttft_beside).p99 / PercentilesOf(ttft_before).p99);
  fmt::print("the heavy one: {}\n", Describe(Of(heavy, &Exchange::ttft_s)));
  for (const auto* exchanges : {&before, &beside}) {
    for (const Exchange& exchange : *exchanges)
      EXPECT_TRUE(exchange.status.ok()) << exchange.status;
  }
  const bool heavy_served =
      std::ranges::any_of(heavy, [](const Exchange& exchange) { return !exchange.tokens.empty(); });
  EXPECT_TRUE(heavy_served) << "the heavy tenant starves";
}

// A client that asks for a long answer and never reads a byte of it.
class SilentReader {
 public:
  explicit SilentReader(const std::string& address, uint64_t seed) {
    grpc::ChannelArguments arguments;  // a connection of its own, with a small window
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 4096);
    stub_ = v1::Inference::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
    v1::GenerateRequest request = DrawnRequest(0, 0, 16, seed, 4000);
    request.set_logprobs(20);
    stream_ = stub_->Generate(&context_, request);
  }
  ~SilentReader() {
    context_.TryCancel();
    stream_->Finish();
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> stream_;
};

TEST_F(Load, ReadersThatNeverReadHarmNobody) {
  const int silent_readers = IsWhole() ? 200 : 12;
  const int readers = IsWhole() ? 50 : 6;
  ASSERT_NO_FATAL_FAILURE(Start({"--stall_s=600"}, {"--kv_tokens=65536", "--sequences=256"}));
  const std::unique_ptr<Connection> connection = Connect();
  const duration<double> phase(PhaseSeconds());
  const auto read = [&](uint64_t number) {
    const auto exchanges = RunClosedLoop(*connection, readers, phase, Fresh(number, 16, 64));
    for (const Exchange& exchange : exchanges) EXPECT_TRUE(exchange.status.ok()) << exchange.status;
    return Of(exchanges, &Exchange::tpot_s);
  };
  const std::vector<double> before = read(1);
  std::vector<std::unique_ptr<SilentReader>> silent;
  for (int i = 0; i < silent_readers; ++i) {
    silent.push_back(std::make_unique<SilentReader>(cluster_->address(), Mix64(2, i)));
  }
  const int64_t early_bytes = cluster_->router().ResidentBytes();
  ASSERT_TRUE(AwaitPaused(silent_readers)) << cluster_->Logs();
  const std::vector<double> beside = read(3);
  const int64_t late_bytes = cluster_->router().ResidentBytes();
  silent.clear();
  const std::vector<double> after = read(4);
  fmt::print("time per output token without silent readers: {}; again at the end: {}\n",
             Describe(before), Describe(after));
  const Percentiles b = PercentilesOf(before), m = PercentilesOf(beside), a = PercentilesOf(after);
  fmt::print(
      "beside {} silent ones: {}; ratio to the mean of before and after: p50 {:.2f}, p99 {:.2f} "
      "(target 1.05)\n",
      silent_readers, Describe(beside), 2 * m.p50 / (b.p50 + a.p50), 2 * m.p99 / (b.p99 + a.p99));
  fmt::print("router resident {:.0f} MB, at the end {:.0f} MB\n", early_bytes / 1e6,
             late_bytes / 1e6);
  // A ring and a window each, and what allocators keep.
  EXPECT_LT(late_bytes - early_bytes, silent_readers * (int64_t{512} << 10) + (int64_t{32} << 20));
}

}  // namespace
}  // namespace facet::testing
