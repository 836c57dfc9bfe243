// Groups of ranks on CUDA devices whose kernels the emulator runs, with half-precision keys and
// values, so that attention runs on tensor cores: the same bits at every degree, chunk and batch,
// and the tokens of a group on the reference device.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/prng.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/runtime/in_process_group.h"

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

std::unique_ptr<Device> MakeEmulated() {
  cuda::CudaDeviceOptions options;
  options.workspace_bytes = int64_t{16} << 20;
  options.graph_bytes = int64_t{1} << 20;
  options.full_blocks = 16;  // chunks are cut by splits, the whole prompt is not
  auto device = cuda::MakeCudaDevice(options);
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);
}

GroupOptions OnCuda(GroupOptions options) {
  options.rank.make_device = MakeEmulated;
  return options;
}

EngineRequest Request(int tokens, uint64_t seed, int max_tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(seed, i) % kVocabulary));
  }
  return GreedyRequest(prompt, max_tokens);
}

Output RunFirst(const GroupOptions& options, int neighbours = 0) {
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  std::vector<EngineRequest> requests = {Request(kPromptTokens, 1, kOutputTokens)};
  for (int i = 0; i < neighbours; ++i) requests.push_back(Request(5 + i, 2 + i, 2));
  return (*group)->Run(std::move(requests)).front();
}

class CudaGroupTest : public ::testing::TestWithParam<const char*> {};

TEST_P(CudaGroupTest, SameBitsAtEveryDegreeChunkAndBatchAndTheReferencesTokens) {
  const Output alone = RunFirst(OnCuda(Options(GetParam(), 1)));
  ASSERT_EQ(alone.ids().size(), size_t{kOutputTokens});

  GroupOptions sharded = OnCuda(Options(GetParam(), 2));
  sharded.rank.prefill_chunk_max = 33;
  const Output of_two = RunFirst(sharded, 2);
  EXPECT_EQ(of_two.logits_sha256, alone.logits_sha256);
  EXPECT_EQ(of_two.ids(), alone.ids());

  // What these prompts' logits differ by is far below the margins between their best tokens.
  GroupOptions reference = Options(GetParam(), 1);
  reference.rank.device = "reference";
  EXPECT_EQ(RunFirst(reference).ids(), alone.ids());
}

// Groups of another arithmetic are not taken for this one: no stream migrates between them.
TEST(CudaGroup, FingerprintNamesTheArithmetic) {
  auto cuda = InProcessGroup::Start(OnCuda(Options("llama_quantized", 1)));
  auto cpu = InProcessGroup::Start(Options("llama_quantized", 1));
  ASSERT_TRUE(cuda.ok() && cpu.ok());
  EXPECT_EQ((*cuda)->leader().facts().fingerprint,
            (*cpu)->leader().facts().fingerprint + "-" + MakeEmulated()->arithmetic());
  EXPECT_TRUE(MakeEmulated()->arithmetic().ends_with("-mma"));
}

INSTANTIATE_TEST_SUITE_P(Models, CudaGroupTest, ::testing::Values("gemma3_8h", "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace facet::testing
