// A Gemma 3 and a Llama end to end on CUDA devices, alone and as groups over the `nccl`
// communicator: the reference's tokens. The emulator runs the kernels and stands in for NCCL.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "base/prng.h"
#include "tests/base/sanitized.h"
#include "tests/cuda_emulator/cublaslt_host.h"
#include "tests/cuda_emulator/nccl_host.h"
#include "tests/runtime/emulated_device.h"
#include "tests/runtime/rounded_device.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 300;   // below every tiny model's
constexpr int kPromptTokens = 70;  // more than one split of keys
constexpr int kOutputTokens = 4;

GroupOptions Options(const std::string& model, int world) {
  GroupOptions options;
  options.rank.model_path = "tests/golden/tiny/" + model + ".gguf";
  options.rank.kv_tokens = 512;
  options.rank.step_tokens_max = 128;
  options.rank.sequences_max = 4;
  options.world = world;
  return options;
}

GroupOptions OnReference(GroupOptions options) {
  options.rank.device = "reference";
  return options;
}

EngineRequest Request(int tokens, uint64_t seed, int max_tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(seed, i) % kVocabulary));
  }
  return GreedyRequest(std::move(prompt), max_tokens);
}

// --- Float32 keys and values: every operation is the reference's, bit for bit.

class CudaGroupOfFloatKeys : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

INSTANTIATE_TEST_SUITE_P(Models, CudaGroupOfFloatKeys,
                         ::testing::Combine(::testing::Values("gemma3_8h_quantized",
                                                              "llama_quantized"),
                                            ::testing::Values(1, 2)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

// Two prompts, the longer in several chunks, one of them sampled.
TEST_P(CudaGroupOfFloatKeys, GivesTheReferencesTokensAndLogits) {
  const auto [model, world] = GetParam();
  GroupOptions alone = Options(model, 1);
  alone.rank.kv_type = KvType::kF32;
  alone.rank.step_tokens_max = 16;
  GroupOptions several = alone;
  several.world = world;
  std::vector<EngineRequest> requests = {Request(21, 1, 5), Request(5, 2, 5)};
  requests[1].sampling.temperature = 1.1f;
  requests[1].seed = 7;

  auto reference = InProcessGroup::Start(OnReference(alone));
  ASSERT_TRUE(reference.ok()) << reference.status();
  const std::vector<Output> want = (*reference)->Run(requests);

  auto group = InProcessGroup::Start(OnCuda(several));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(cuda_emulator::LiveNcclComms(), world == 1 ? 0 : world);
  const std::vector<Output> got = (*group)->Run(requests);
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(want[i].tokens.size(), 5u);
    EXPECT_EQ(got[i].ids(), want[i].ids());
    EXPECT_EQ(got[i].logits_sha256, want[i].logits_sha256);
  }
  group->reset();
  EXPECT_EQ(cuda_emulator::LiveNcclComms(), 0);
}

// --- Half-precision keys and values, the default: attention runs on tensor cores.

Output RunFirst(const GroupOptions& options, int neighbours = 0) {
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  std::vector<EngineRequest> requests = {Request(kPromptTokens, 1, kOutputTokens)};
  for (int i = 0; i < neighbours; ++i) requests.push_back(Request(5 + i, 2 + i, 2));
  return (*group)->Run(std::move(requests)).front();
}

class CudaGroupOfHalfKeys : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Models, CudaGroupOfHalfKeys,
                         ::testing::Values("gemma3_8h", "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(CudaGroupOfHalfKeys, SameBitsAtEveryDegreeChunkAndBatchAndTheReferencesTokens) {
  const Output alone = RunFirst(OnCuda(Options(GetParam(), 1)));
  ASSERT_EQ(alone.ids().size(), size_t{kOutputTokens});

  GroupOptions sharded = OnCuda(Options(GetParam(), 2));
  sharded.rank.prefill_chunk_max = 33;
  const Output of_two = RunFirst(sharded, 2);
  EXPECT_EQ(of_two.logits_sha256, alone.logits_sha256);
  EXPECT_EQ(of_two.ids(), alone.ids());

  // What these prompts' logits differ by is far below the margins between their best tokens.
  EXPECT_EQ(RunFirst(OnReference(Options(GetParam(), 1))).ids(), alone.ids());
}

// --- Fast arithmetic: the prompt goes through the library, what follows through products of a row.

// What follows each token of a prompt, and the tokens after it, with the two best of each.
Output Scored(const GroupOptions& options) {
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  std::vector<EngineRequest> requests = {Request(kPromptTokens, 1, kOutputTokens)};
  requests[0].logprobs = 2;
  requests[0].prompt_logprobs = true;
  return (*group)->Run(std::move(requests)).front();
}

// The largest difference of log-probabilities, as long as both have said the same.
double LargestDifference(const Output& a, const Output& b) {
  double largest = 0;
  const auto compare = [&](const ScoredToken& one, const ScoredToken& other) {
    const double difference = std::fabs(double{one.logprob} - other.logprob);
    EXPECT_TRUE(std::isfinite(difference));
    largest = std::max(largest, difference);
  };
  for (size_t i = 0; i < a.prompt.size(); ++i) compare(a.prompt[i], b.prompt[i]);
  for (size_t i = 0; i < a.tokens.size() && a.tokens[i].id == b.tokens[i].id; ++i) {
    compare(a.tokens[i], b.tokens[i]);
  }
  return largest;
}

// What factors that are off by as much as fast arithmetic allows make of the reference's
// log-probabilities. A few draws are enough: each has a difference for every token of the prompt,
// of errors that are drawn evenly up to the bound, where those of rounding are the smaller the
// larger the factor's mantissa.
double SpreadOfRounding(const std::string& model, const Output& want) {
  constexpr uint64_t kDraws = 4;
  double largest = 0;
  for (uint64_t seed = 0; seed < kDraws; ++seed) {
    largest =
        std::max(largest, LargestDifference(Scored(OnRounded(Options(model, 1), seed)), want));
  }
  return largest;
}

// Whether the reference's best token is so far ahead that it must be the other's best, too.
bool IsClear(const ScoredToken& token, double tolerance) {
  return token.top.at(0).second - token.top.at(1).second > 2 * tolerance;
}

void ExpectTokensWithin(double tolerance, const Output& got, const Output& want) {
  ASSERT_EQ(got.prompt.size(), want.prompt.size());
  ASSERT_EQ(got.tokens.size(), want.tokens.size());
  EXPECT_LE(LargestDifference(got, want), tolerance);
  int clear = 0;
  for (size_t i = 0; i < want.prompt.size(); ++i) {
    if (!IsClear(want.prompt[i], tolerance)) continue;
    EXPECT_EQ(got.prompt[i].top.at(0).first, want.prompt[i].top.at(0).first) << "token " << i;
    ++clear;
  }
  EXPECT_GE(clear, 5) << "of " << want.prompt.size();
  // Decoding, as long as both have said the same.
  for (size_t i = 0; i < want.tokens.size(); ++i) {
    if (IsClear(want.tokens[i], tolerance)) {
      EXPECT_EQ(got.tokens[i].id, want.tokens[i].id) << "token " << i;
    }
    if (got.tokens[i].id != want.tokens[i].id) break;
  }
}

class CudaGroupOfFastArithmetic : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Models, CudaGroupOfFastArithmetic,
                         ::testing::Values("gemma3_8h", "gemma3_8h_quantized", "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(CudaGroupOfFastArithmetic, GivesTheReferencesTokensWhereItsMarginExceedsTheTolerance) {
  const Output want = Scored(OnReference(Options(GetParam(), 1)));
  const double tolerance = SpreadOfRounding(GetParam(), want);
  for (const int world : Cases<int>({1, 2}, {2})) {
    SCOPED_TRACE(world);
    const int64_t runs = cuda_emulator::CublasLtRuns();
    const Output got = Scored(OnCuda(Options(GetParam(), world), true));
    EXPECT_GT(cuda_emulator::CublasLtRuns(), runs);
    ASSERT_NO_FATAL_FAILURE(ExpectTokensWithin(tolerance, got, want));
  }
}

// What is kept: the algorithms are pinned, so that a run repeats itself.
TEST(CudaGroupOfFastProducts, TheSameStepsGiveTheSameBits) {
  const GroupOptions options = Options("llama_quantized", 1);
  const Output once = RunFirst(OnCuda(options, true));
  const Output again = RunFirst(OnCuda(options, true));
  EXPECT_EQ(again.logits_sha256, once.logits_sha256);
  EXPECT_EQ(again.ids(), once.ids());
}

// Groups of another arithmetic are not taken for this one: no stream migrates between them.
TEST(CudaGroup, FingerprintNamesTheArithmetic) {
  auto cuda = InProcessGroup::Start(OnCuda(Options("llama_quantized", 1)));
  auto cpu = InProcessGroup::Start(OnReference(Options("llama_quantized", 1)));
  ASSERT_TRUE(cuda.ok() && cpu.ok());
  const std::string arithmetic = MakeEmulated(1)->arithmetic();
  EXPECT_EQ((*cuda)->leader().facts().fingerprint,
            (*cpu)->leader().facts().fingerprint + "-" + arithmetic);
  EXPECT_TRUE(arithmetic.ends_with("-mma"));
  auto fast = InProcessGroup::Start(OnCuda(Options("llama_quantized", 1), true));
  ASSERT_TRUE(fast.ok()) << fast.status();
  EXPECT_EQ((*fast)->leader().facts().fingerprint,
            (*cpu)->leader().facts().fingerprint + "-" + MakeEmulated(1, true)->arithmetic());
  EXPECT_NE((*fast)->leader().facts().fingerprint, (*cuda)->leader().facts().fingerprint);
}

}  // namespace
}  // namespace facet::testing
