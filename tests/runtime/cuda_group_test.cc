// A Gemma 3 and a Llama end to end on the CUDA device, alone and sharded, over the `nccl`
// communicator: the reference's tokens and logits. The emulator runs the kernels and stands in for
// NCCL.

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <tuple>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/cuda_emulator/nccl_host.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 300;  // below every tiny model's

GroupOptions Options(const std::string& model, int world) {
  GroupOptions options;
  options.rank.model_path = "tests/golden/tiny/" + model + ".gguf";
  options.rank.device = "reference";
  options.rank.context_tokens = 64;
  options.rank.kv_tokens = 256;
  options.rank.step_tokens_max = 16;
  options.rank.sequences_max = 4;
  options.world = world;
  return options;
}

// The ranks' devices, one after the other.
GroupOptions CudaOptions(const std::string& model, int world) {
  GroupOptions options = Options(model, world);
  options.rank.make_device = [next = std::make_shared<std::atomic<int>>(0)] {
    auto device = cuda::MakeCudaDevice(
        {.device = (*next)++ % cuda_emulator::kDevices, .workspace_bytes = int64_t{8} << 20});
    FACET_CHECK(device.ok(), "{}", MessageOf(device.status()));
    return *std::move(device);
  };
  return options;
}

// Two prompts, the longer in several chunks, one of them sampled.
std::vector<EngineRequest> Requests() {
  std::vector<EngineRequest> requests;
  for (const int length : {21, 5}) {
    std::vector<TokenId> prompt;
    for (int i = 0; i < length; ++i) {
      prompt.push_back(static_cast<TokenId>(Mix64(static_cast<uint64_t>(length), i) % kVocabulary));
    }
    requests.push_back(GreedyRequest(std::move(prompt), 5));
  }
  requests[1].sampling.temperature = 1.1f;
  requests[1].seed = 7;
  return requests;
}

class CudaGroup : public ::testing::TestWithParam<std::tuple<const char*, int>> {};

INSTANTIATE_TEST_SUITE_P(Models, CudaGroup,
                         ::testing::Combine(::testing::Values("gemma3_8h_quantized",
                                                              "llama_quantized"),
                                            ::testing::Values(1, 2)),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" +
                                  std::to_string(std::get<1>(info.param));
                         });

TEST_P(CudaGroup, GivesTheReferencesTokensAndLogits) {
  const auto [model, world] = GetParam();
  auto reference = InProcessGroup::Start(Options(model, 1));
  ASSERT_TRUE(reference.ok()) << reference.status();
  const std::vector<Output> want = (*reference)->Run(Requests());

  auto group = InProcessGroup::Start(CudaOptions(model, world));
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(cuda_emulator::LiveNcclComms(), world == 1 ? 0 : world);
  const std::vector<Output> got = (*group)->Run(Requests());
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(want[i].tokens.size(), 5u);
    EXPECT_EQ(got[i].ids(), want[i].ids());
    EXPECT_EQ(got[i].logits_sha256, want[i].logits_sha256);
  }
  group->reset();
  EXPECT_EQ(cuda_emulator::LiveNcclComms(), 0);
}

}  // namespace
}  // namespace facet::testing
