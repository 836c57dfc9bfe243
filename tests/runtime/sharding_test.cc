// Promise 1 of the design: the same request gives the same bits at every tensor-parallel degree,
// batch, chunking, thread count and device, after a cached prefix and after preemptions. Compares
// one SHA-256 over the raw logits of every prompt and output position. (The same through processes
// and gRPC: tests/cluster.)

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/host/forwarding_device.h"
#include "kernels/reference/reference_device.h"
#include "tests/base/sanitized.h"
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
  for (const int world : Cases<int>({2, 3, 4, 5, 6, 7, 8}, {2, 3, 8})) {
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
  for (const int chunk : Cases<int>({1, 16, 63, 64, 65}, {16, 65})) {
    for (const int world : {1, 2}) {
      SCOPED_TRACE(chunk);
      GroupOptions options = Options(GetParam(), world);
      options.rank.prefill_chunk_max = chunk;
      ExpectSame(options);
    }
  }
}

TEST_P(ShardingTest, EveryBatch) {
  for (const int batch : Cases<int>({2, 5, 16}, {5})) {
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

// A request whose tokens and log-probabilities are compared: a digest would keep it off the cache.
EngineRequest ScoredRequest(std::vector<TokenId> prompt, uint64_t seed) {
  EngineRequest request = GreedyRequest(std::move(prompt), 12);
  request.logits_digest = false;
  request.logprobs = 3;
  request.seed = seed;
  if (seed % 2 == 1) request.sampling.temperature = 1.1f;
  return request;
}

std::unique_ptr<InProcessGroup> StartWith(const char* model, int world, int steps_max,
                                          bool prefix_cache, int64_t kv_tokens) {
  GroupOptions options = Options(model, world);
  options.rank.kv_tokens = kv_tokens;
  options.steps_max = steps_max;
  options.prefix_cache = prefix_cache;
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

// Blocks have 32 tokens: hits of none, one and two blocks, at both sides of their borders.
TEST_P(ShardingTest, AfterEveryCachedPrefix) {
  auto cold = StartWith(GetParam(), 1, 1, false, 2048);
  for (const int world : {1, 2}) {
    for (const int steps_max : {1, 2}) {
      auto group = StartWith(GetParam(), world, steps_max, true, 2048);
      uint64_t family = 100;
      for (const int shared : Cases<int>({0, 31, 32, 33, 64}, {0, 33})) {
        SCOPED_TRACE(shared);
        family += 2;
        std::vector<TokenId> prompt = Prompt(90, family);
        group->Run({ScoredRequest(prompt, family)});
        const std::vector<TokenId> own = Prompt(90, family + 1);
        std::copy(own.begin() + shared, own.end(), prompt.begin() + shared);
        const Output output = group->Run({ScoredRequest(prompt, family + 1)}).front();
        EXPECT_EQ(output.cached_tokens, shared / 32 * 32);
        EXPECT_EQ(output.tokens, cold->Run({ScoredRequest(prompt, family + 1)}).front().tokens);
      }
    }
  }
}

// Two prompts fill a pool of four blocks. After `tokens` tokens the older sequence needs a fifth:
// the younger gives way, and goes on from what is left of its blocks in the cache.
TEST_P(ShardingTest, AfterAPreemptionAtEveryToken) {
  auto cold = StartWith(GetParam(), 1, 1, false, 2048);
  for (const int world : {1, 2}) {
    for (const int steps_max : {1, 2}) {
      auto group = StartWith(GetParam(), world, steps_max, true, 4 * 32);
      for (int tokens = 1; tokens <= 12; tokens += kSanitized ? 5 : 1) {
        SCOPED_TRACE(tokens);
        const uint64_t family = 200 + 4 * static_cast<uint64_t>(tokens);
        EngineRequest older = ScoredRequest(Prompt(65 - tokens, family), family);
        EngineRequest younger = ScoredRequest(Prompt(40, family + 1), family + 1);
        older.max_tokens = younger.max_tokens = 15;
        const std::vector<Output> outputs = group->Run({older, younger});
        ASSERT_EQ(outputs[1].starts.size(), 2u);
        if (steps_max == 1) {
          EXPECT_EQ(outputs[1].starts[1], tokens);
        }
        EXPECT_EQ(outputs[0].tokens, cold->Run({older}).front().tokens);
        EXPECT_EQ(outputs[1].tokens, cold->Run({younger}).front().tokens);
      }
    }
  }
}

// Step n + 1 is planned before the token of step n is known.
TEST_P(ShardingTest, WithAndWithoutOverlap) {
  std::vector<EngineRequest> requests;
  for (uint64_t i = 0; i < 6; ++i) {
    requests.push_back(ScoredRequest(Prompt(20 + 9 * static_cast<int>(i), i), i));
    if (i % 3 == 0) requests.back().sampling.repetition_penalty = 1.2f;
  }
  const std::vector<Output> outputs = StartWith(GetParam(), 1, 1, false, 2048)->Run(requests);
  for (const int world : {1, 2}) {
    const std::vector<Output> overlapped =
        StartWith(GetParam(), world, 2, true, 2048)->Run(requests);
    for (size_t i = 0; i < outputs.size(); ++i) {
      EXPECT_EQ(overlapped[i].tokens, outputs[i].tokens);
    }
  }
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

TEST(PrefillChunk, OfAHostIsPartOfALongStepUnlessOneIsNamed) {
  struct Case {
    int step_tokens, named, used;
  };
  for (const auto& [step_tokens, named, used] :
       {Case{512, 0, 256}, Case{100, 0, 100}, Case{512, 300, 300}}) {
    RankOptions options = Options(kGemma).rank;
    options.step_tokens_max = step_tokens;
    options.prefill_chunk_max = named;
    const auto rank = Rank::Load(options);
    ASSERT_TRUE(rank.ok()) << rank.status();
    EXPECT_EQ((*rank)->engine_options().prefill_chunk_max, used) << step_tokens << ", " << named;
  }
}

}  // namespace
}  // namespace facet::testing
