// What a running cluster promises beyond its answers: memory, idle cost, hostile clients and
// files, clean ends.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <thread>
#include <vector>

#include "base/status.h"
#include "tests/base/patience.h"
#include "tests/cluster/cluster.h"

namespace facet::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr char kTiny[] = "tests/golden/tiny/gemma3_8h_quantized.gguf";

std::unique_ptr<Cluster> StartOrFail(const ClusterOptions& options) {
  auto cluster = Cluster::Start(options);
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  return cluster.ok() ? *std::move(cluster) : nullptr;
}

std::unique_ptr<Cluster> StartTiny(int tensor_parallel,
                                   const std::vector<std::string>& worker_flags = {}) {
  ClusterOptions options;
  options.model = kTiny;
  options.tensor_parallel = tensor_parallel;
  options.worker_flags = worker_flags;
  return StartOrFail(options);
}

v1::GenerateRequest Request(const std::string& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text(prompt);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.set_ignore_eos(true);
  return request;
}

grpc::Status Complete(Cluster& cluster, const v1::GenerateRequest& request,
                      v1::CompleteResponse* response) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kLong);
  return cluster.inference().Complete(&context, request, response);
}

v1::GetStatusResponse GetStatus(Cluster& cluster) {
  grpc::ClientContext context;
  v1::GetStatusResponse response;
  EXPECT_TRUE(cluster.status().GetStatus(&context, {}, &response).ok());
  return response;
}

// Waits until the groups hold nothing: no sequence, no KV token.
bool BecomesIdle(Cluster& cluster) {
  for (const auto end = std::chrono::steady_clock::now() + kLong;
       std::chrono::steady_clock::now() < end;) {
    const v1::GetStatusResponse status = GetStatus(cluster);
    bool idle = status.running_requests() == 0 && status.queued_requests() == 0;
    for (const v1::GroupStatus& group : status.groups()) {
      idle = idle && group.running() == 0 && group.waiting() == 0 && group.kv_tokens_used() == 0;
    }
    if (idle) return true;
    std::this_thread::sleep_for(milliseconds(20));
  }
  return false;
}

TEST(Cluster, IsReadySoonAndLean) {
  ClusterOptions options;
  options.model = ModelPath(kGemmaFile);
  options.tensor_parallel = 2;
  const TempFolder packed;
  options.worker_flags = {"--kv_tokens=8192", "--packed_cache=" + packed.File("packed")};
  // What facet_worker_weight_bytes says: half of the file's 246 MB, K, V and the norms on both.
  // The KV pools count as far as they are used, here next to nothing.
  constexpr int64_t kPlanBytes = 125'894'144;
  for (const char* start : {"packs its weights", "finds them packed"}) {
    auto cluster = StartOrFail(options);
    ASSERT_NE(cluster, nullptr);
    v1::CompleteResponse response;
    ASSERT_TRUE(Complete(*cluster, Request("The sea", 32), &response).ok());
    for (int rank = 0; rank < 2; ++rank) {
      EXPECT_LT(cluster->worker(0, rank).ResidentBytes(),
                kPlanBytes * 115 / 100 + (int64_t{64} << 20))
          << "rank " << rank << " " << start;
    }
  }
}

// How the ranks of a group exchange data.
class ClusterOver : public ::testing::TestWithParam<std::string> {
 protected:
  std::vector<std::string> Flags() const { return {"--collective=" + GetParam()}; }
};
INSTANTIATE_TEST_SUITE_P(, ClusterOver, ::testing::Values("shm", "tcp"),
                         [](const auto& info) { return info.param; });

TEST_P(ClusterOver, IdleCostsLittle) {
  auto cluster = StartTiny(2, Flags());
  ASSERT_NE(cluster, nullptr);
  const auto cpu = [&] {
    return cluster->router().CpuSeconds() + cluster->worker(0, 0).CpuSeconds() +
           cluster->worker(0, 1).CpuSeconds();
  };
  constexpr double kMost = 0.02 * 3 + 0.02;  // and two ticks of the clock
  // What polls does so in every such time; what the start has left to do does not, and a machine
  // that stands still for a while lets all catch up.
  double used = 2 * kMost;
  for (int time = 0; time < 10 && used > kMost; ++time) {
    const double before = cpu();
    std::this_thread::sleep_for(seconds(3));
    used = cpu() - before;
  }
  EXPECT_LE(used, kMost);
}

TEST(Cluster, ClientThatVanishesFreesItsBlocks) {
  auto cluster = StartTiny(2);
  ASSERT_NE(cluster, nullptr);
  for (int i = 0; i < 5; ++i) {
    grpc::ClientContext context;
    auto stream = cluster->inference().Generate(&context, Request("Hello there", 100));
    v1::GenerateResponse message;
    ASSERT_TRUE(stream->Read(&message));
    context.TryCancel();
    stream->Finish();
  }
  EXPECT_TRUE(BecomesIdle(*cluster));
}

TEST(Cluster, ClientThatNeverReadsHarmsNobody) {
  auto cluster = StartTiny(2);
  ASSERT_NE(cluster, nullptr);
  {
    grpc::ClientContext silent;
    auto stream = cluster->inference().Generate(&silent, Request("Hello", 120));
    v1::CompleteResponse response;
    EXPECT_TRUE(Complete(*cluster, Request("Hello", 20), &response).ok());
    silent.TryCancel();
    stream->Finish();
  }
  EXPECT_TRUE(BecomesIdle(*cluster));
}

TEST(Cluster, BadRequestsAreRefusedAndTheServiceGoesOn) {
  auto cluster = StartTiny(1);
  ASSERT_NE(cluster, nullptr);
  struct Case {
    const char* field;
    grpc::StatusCode code;
    std::function<void(v1::GenerateRequest*)> spoil;
  };
  const Case cases[] = {
      {"prompts", grpc::INVALID_ARGUMENT, [](auto* r) { r->clear_prompts(); }},
      {"sampling.temperature", grpc::INVALID_ARGUMENT,
       [](auto* r) { r->mutable_sampling()->set_temperature(NAN); }},
      {"sampling.top_p", grpc::INVALID_ARGUMENT,
       [](auto* r) { r->mutable_sampling()->set_top_p(1.5f); }},
      {"tokens", grpc::INVALID_ARGUMENT,
       [](auto* r) { r->mutable_prompts(0)->mutable_tokens()->add_ids(1 << 30); }},
      {"model", grpc::NOT_FOUND, [](auto* r) { r->set_model("no-such-model"); }},
      {"context", grpc::INVALID_ARGUMENT,
       [](auto* r) { r->mutable_prompts(0)->mutable_tokens()->mutable_ids()->Resize(100'000, 5); }},
      {"logits_digest", grpc::UNIMPLEMENTED, [](auto* r) { r->set_logits_digest(true); }},
  };
  for (const Case& c : cases) {
    v1::GenerateRequest request = Request("Hello", 4);
    c.spoil(&request);
    v1::CompleteResponse response;
    const grpc::Status status = Complete(*cluster, request, &response);
    EXPECT_EQ(status.error_code(), c.code) << c.field << ": " << status.error_message();
    EXPECT_NE(status.error_message().find(c.field), std::string::npos) << status.error_message();
  }
  v1::GenerateRequest huge = Request(std::string(100 << 20, 'x'), 4);
  v1::CompleteResponse response;
  const grpc::Status refused = Complete(*cluster, huge, &response);
  EXPECT_EQ(refused.error_code(), grpc::RESOURCE_EXHAUSTED) << refused.error_message();
  EXPECT_TRUE(Complete(*cluster, Request("Hello", 4), &response).ok());
  EXPECT_TRUE(BecomesIdle(*cluster));
}

TEST(Cluster, SigtermEndsEveryProcessWithZero) {
  auto cluster = StartTiny(2);
  ASSERT_NE(cluster, nullptr);
  v1::CompleteResponse response;
  ASSERT_TRUE(Complete(*cluster, Request("Hello", 4), &response).ok());
  cluster->router().Signal(SIGTERM);
  EXPECT_EQ(cluster->router().Wait(kLong), 0) << cluster->router().Log();
  cluster->worker(0, 0).Signal(SIGTERM);
  EXPECT_EQ(cluster->worker(0, 0).Wait(kLong), 0) << cluster->worker(0, 0).Log();
  EXPECT_EQ(cluster->worker(0, 1).Wait(kLong), 0) << cluster->worker(0, 1).Log();
}

// The survivors of a dead rank keep their weights and wait for its successor.
TEST_P(ClusterOver, GroupFormsAgainAroundItsDeadRank) {
  auto cluster = StartTiny(3, Flags());
  ASSERT_NE(cluster, nullptr);
  v1::CompleteResponse before, after;
  ASSERT_TRUE(Complete(*cluster, Request("Hello", 12), &before).ok());
  for (const int rank : {2, 0}) {  // a follower, and the leader
    cluster->worker(0, rank).Signal(SIGKILL);
    ASSERT_TRUE(cluster->worker(0, rank).Wait(kLong).has_value());
    ASSERT_TRUE(cluster->Restart(0, rank).ok());
    ASSERT_TRUE(Complete(*cluster, Request("Hello", 12), &after).ok()) << cluster->Logs();
    EXPECT_EQ(after.choices(0).text(), before.choices(0).text());
  }
  EXPECT_TRUE(cluster->worker(0, 1).running());
}

TEST(Cluster, GroupEndsIfItsDeadRankStaysAway) {
  ClusterOptions options;
  options.model = kTiny;
  options.tensor_parallel = 3;
  options.worker_flags = {"--rejoin_s=0.5"};
  auto cluster = StartOrFail(options);
  ASSERT_NE(cluster, nullptr);
  cluster->worker(0, 2).Signal(SIGKILL);
  for (int rank = 0; rank < 2; ++rank) {
    const std::optional<int> code = cluster->worker(0, rank).Wait(kLong);
    ASSERT_TRUE(code.has_value()) << "rank " << rank << " still runs";
    EXPECT_NE(*code, 0);
  }
}

// Streams a request and returns its ids; calls `disturb` once after `after` tokens.
std::vector<int32_t> StreamIds(Cluster& cluster, const v1::GenerateRequest& request, size_t after,
                               const std::function<void()>& disturb) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kLong);
  auto stream = cluster.inference().Generate(&context, request);
  std::vector<int32_t> ids;
  bool disturbed = false;
  for (v1::GenerateResponse message; stream->Read(&message);) {
    for (const v1::Delta& delta : message.deltas()) {
      EXPECT_EQ(delta.offset(), static_cast<int>(ids.size()));
      for (const v1::TokenOutput& token : delta.tokens()) ids.push_back(token.id());
    }
    if (!disturbed && ids.size() >= after) {
      disturbed = true;
      disturb();
    }
  }
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(disturbed);
  return ids;
}

// Kills a rank of the group that runs the stream: another group goes on with the same tokens.
TEST_P(ClusterOver, StreamOutlivesItsGroup) {
  ClusterOptions options;
  options.model = ModelPath(kGemmaFile);
  options.tensor_parallel = 2;
  options.replicas = 2;
  options.worker_flags = Flags();
  options.worker_flags.push_back("--kv_tokens=4096");
  auto cluster = StartOrFail(options);
  ASSERT_NE(cluster, nullptr);
  v1::GenerateRequest request = Request("The harbour lay still, and", 150);
  request.mutable_sampling()->set_temperature(1);
  request.mutable_sampling()->set_frequency_penalty(0.5f);
  request.set_seed(99);
  const std::vector<int32_t> undisturbed = StreamIds(*cluster, request, 1, [] {});
  ASSERT_EQ(undisturbed.size(), 150u);
  const std::vector<int32_t> disturbed = StreamIds(*cluster, request, 30, [&] {
    const v1::GetStatusResponse status = GetStatus(*cluster);
    for (int group = 0; group < status.groups_size(); ++group) {
      if (status.groups(group).running() > 0) cluster->worker(group, 1).Signal(SIGKILL);
    }
  });
  EXPECT_EQ(disturbed, undisturbed);
  const v1::GetStatusResponse status = GetStatus(*cluster);
  EXPECT_EQ(status.groups(0).ready() + status.groups(1).ready(), 1) << status.ShortDebugString();
}

// Starts a cluster on a model that must be refused; returns what its processes said.
std::string RefusalOf(const std::string& model, int tensor_parallel = 1) {
  ClusterOptions options;
  options.model = model;
  options.tensor_parallel = tensor_parallel;
  const auto cluster = Cluster::Start(options);
  EXPECT_FALSE(cluster.ok());
  return MessageOf(cluster.status());
}

TEST(Cluster, BadFilesAndFlagsAreRefusedWithASentence) {
  const TempFolder folder;
  const std::string truncated = folder.File("truncated.gguf");
  {
    std::ifstream in(kTiny, std::ios::binary);
    std::vector<char> bytes(600'000);
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    std::ofstream(truncated, std::ios::binary).write(bytes.data(), in.gcount());
  }
  EXPECT_THAT(RefusalOf(truncated), HasSubstr("truncated.gguf"));
  EXPECT_THAT(RefusalOf("/no/such/file.gguf"), HasSubstr("/no/such/file.gguf"));
  EXPECT_THAT(RefusalOf(kTiny, 9), HasSubstr("splits into 1 to 8 ranks"));
}

}  // namespace
}  // namespace facet::testing
