// Promise 1 of the design: the same request gives the same bits at every tensor-parallel degree,
// batch, chunking, thread count and device. Compares one SHA-256 over the raw logits of every
// prompt and output position. (The same through processes and gRPC: tests/cluster.)

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/reference/reference_device.h"
#include "tests/runtime/forwarding_device.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr char kGemma[] = "tests/golden/tiny/gemma3_8h_quantized.gguf";
constexpr char kGemmaFloat[] = "tests/golden/tiny/gemma3_8h.gguf";
constexpr char kGemma2[] = "tests/golden/tiny/gemma2.gguf";
constexpr char kLlama[] = "tests/golden/tiny/llama_quantized.gguf";
constexpr int kVocabulary = 300;  // below every tiny model's

GroupOptions Options(const std::string& model, int world = 1) {
  GroupOptions options;
  options.rank.model_path = model;
  options.rank.kv_tokens = 2048;
  options.rank.step_tokens_max = 128;
  options.rank.sequences_max = 16;
  options.world = world;
  return options;
}

std::vector<TokenId> Prompt(int length, uint64_t seed) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < length; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(seed, i) % kVocabulary));
  }
  return prompt;
}

// Requests of mixed lengths; the first is the one that is compared.
std::vector<EngineRequest> Requests(int count) {
  std::vector<EngineRequest> requests;
  for (int i = 0; i < count; ++i) {
    const int length = i == 0 ? 101 : 1 + static_cast<int>(Mix64(7, i) % 90);
    EngineRequest request = GreedyRequest(Prompt(length, i), i == 0 ? 12 : 3 + i % 7);
    if (i % 3 == 1) {  // neighbours that sample
      request.sampling.temperature = 1.3f;
      request.seed = i;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

Output RunFirst(const GroupOptions& options, int batch) {
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return (*group)->Run(Requests(batch)).front();
}

class ShardingTest : public ::testing::TestWithParam<const char*> {
 protected:
  const Output& Baseline() {
    static std::map<std::string, Output> baselines;
    auto [it, fresh] = baselines.try_emplace(GetParam());
    if (fresh) it->second = RunFirst(Options(GetParam()), 1);
    return it->second;
  }
  void ExpectSame(const GroupOptions& options, int batch = 1) {
    const Output output = RunFirst(options, batch);
    EXPECT_EQ(output.logits_sha256, Baseline().logits_sha256);
    EXPECT_EQ(output.ids(), Baseline().ids());
  }
};

TEST_P(ShardingTest, EveryDegree) {
  EXPECT_EQ(Baseline().ids().size(), 12u);
  EXPECT_EQ(Baseline().logits_sha256.size(), 64u);
  for (int world = 2; world <= 8; ++world) {
    SCOPED_TRACE(world);
    auto group = InProcessGroup::Start(Options(GetParam(), world));
    if (!group.ok()) {  // more ranks than leaves: refused, and only then
      EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_GE(world, 4);
      continue;
    }
    ExpectSame(Options(GetParam(), world));
  }
}

TEST_P(ShardingTest, EveryChunk) {
  for (const int chunk : {1, 16, 63, 64, 65}) {
    for (const int world : {1, 2}) {
      SCOPED_TRACE(chunk);
      GroupOptions options = Options(GetParam(), world);
      options.rank.prefill_chunk_max = chunk;
      ExpectSame(options);
    }
  }
}

TEST_P(ShardingTest, EveryBatch) {
  for (const int batch : {2, 5, 16}) {
    for (const int world : {1, 3}) {
      SCOPED_TRACE(batch);
      ExpectSame(Options(GetParam(), world), batch);
    }
  }
}

TEST_P(ShardingTest, EveryThreadCount) {
  for (const int threads : {2, 3}) {
    SCOPED_TRACE(threads);
    GroupOptions options = Options(GetParam(), 2);
    options.rank.threads = threads;
    ExpectSame(options, 3);
  }
}

TEST_P(ShardingTest, EveryDevice) {
  for (const char* device : {"reference", "avx2", "avx512"}) {
    if (std::string(device) == "avx512" && !__builtin_cpu_supports("avx512vnni")) continue;
    SCOPED_TRACE(device);
    GroupOptions options = Options(GetParam(), 2);
    options.rank.device = device;
    ExpectSame(options, 2);
  }
}

// A pool so small that sequences preempt each other and are recomputed.
TEST_P(ShardingTest, AfterPreemption) {
  GroupOptions options = Options(GetParam(), 2);
  options.rank.kv_tokens = 256;
  ExpectSame(options, 8);
}

INSTANTIATE_TEST_SUITE_P(Models, ShardingTest,
                         ::testing::Values(kGemma, kGemmaFloat, kGemma2, kLlama),
                         [](const auto& info) {
                           std::string name = info.param;
                           name = name.substr(name.rfind('/') + 1);
                           return name.substr(0, name.find('.'));
                         });

// The reference device with one planted fault: the order in which its norm adds squares depends
// on how many rows it is given.
class BatchDependentDevice : public ForwardingDevice {
 public:
  BatchDependentDevice() : ForwardingDevice(MakeReferenceDevice()) {}
  void RmsNorm(Floats x, int rows, int width, Floats weight, float epsilon, Floats out) override {
    for (int row = 0; row < rows; ++row) {
      const float* in = x.data + int64_t{row} * width;
      float sum = 0;
      for (int i = 0; i < width; ++i) {
        const float value = in[rows > 1 ? width - 1 - i : i];
        sum += value * value;
      }
      const float scale = 1 / std::sqrt(sum / static_cast<float>(width) + epsilon);
      for (int i = 0; i < width; ++i) {
        out.data[int64_t{row} * width + i] = in[i] * scale * weight.data[i];
      }
    }
  }
};

// The hash notices: without this, every test above could pass by hashing nothing.
TEST(Sharding, KernelWhoseOrderDependsOnTheBatchIsCaught) {
  GroupOptions options = Options(kGemmaFloat);
  options.rank.make_device = [] { return std::make_unique<BatchDependentDevice>(); };
  const std::string whole = RunFirst(options, 1).logits_sha256;
  EXPECT_EQ(RunFirst(options, 1).logits_sha256, whole);
  options.rank.prefill_chunk_max = 1;
  EXPECT_NE(RunFirst(options, 1).logits_sha256, whole);
}

TEST(Sharding, EightRanksServeEightHeads) {
  const GroupOptions options = Options(kGemma, 8);
  EXPECT_EQ(RunFirst(options, 1).logits_sha256, RunFirst(Options(kGemma), 1).logits_sha256);
}

}  // namespace
}  // namespace facet::testing
