// The forward pass of every family against the logits that transformers (float32) and llama.cpp
// recorded for the same tiny random files; tests/golden/README.md says how.

#include "shard_worker/model/forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>

#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/reference/reference_device.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 32;

struct Case {
  std::vector<TokenId> prompt;
  std::vector<int32_t> positions;
};

struct Recorded {
  int64_t vocabulary = 0;
  std::vector<Case> cases;
};

std::string Path(const std::string& file) { return "tests/golden/tiny/" + file; }

Recorded ReadCases(const std::string& model) {
  Recorded recorded;
  std::ifstream in(Path(model + ".cases"));
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string kind;
    words >> kind;
    if (kind == "vocabulary") words >> recorded.vocabulary;
    if (kind == "prompt") recorded.cases.emplace_back();
    for (int32_t value; words >> value;) {
      (kind == "prompt" ? recorded.cases.back().prompt : recorded.cases.back().positions)
          .push_back(value);
    }
  }
  return recorded;
}

std::vector<float> ReadLogits(const std::string& file) {
  std::ifstream in(Path(file), std::ios::binary);
  std::vector<char> bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  std::vector<float> logits(bytes.size() / sizeof(float));
  std::memcpy(logits.data(), bytes.data(), logits.size() * sizeof(float));
  return logits;
}

std::unique_ptr<Device> MakeDevice(const std::string& name) {
  if (name == "reference") return MakeReferenceDevice();
  auto device = name == "cpu" ? MakeCpuDevice(CpuDeviceOptions{})
                              : cuda::MakeCudaDevice({.workspace_bytes = int64_t{8} << 20});
  EXPECT_TRUE(device.ok()) << device.status();
  return *std::move(device);
}

// One rank that computes one sequence.
class Runner {
 public:
  Runner(const std::string& model_name, const std::string& device_name)
      : model_(*GgufModel::Open(Path(model_name + ".gguf"))),
        spec_(*ReadModelSpec(model_)),
        plan_(*ShardPlan::Make(model_, spec_, 1)),
        device_(MakeDevice(device_name)),
        weights_(*LoadWeights(model_, spec_, plan_, 0, device_.get(), false, {})),
        forward_(*Forward::Create(spec_, plan_, 0, weights_, device_.get(), 512)),
        communicators_(MakeLocalGroup(1)),
        blocks_(16) {
    auto pools = forward_->pools();
    for (KvPoolSpec& pool : pools) {
      pool.blocks = pool.layers > 0 ? 16 : 0;
      pool.block_tokens = kBlockTokens;
      pool.type = KvType::kF32;
    }
    EXPECT_TRUE(device_->AllocateKv(pools).ok());
    std::iota(blocks_.begin(), blocks_.end(), 0);
  }

  void Step(std::span<const TokenId> tokens, int64_t first_position,
            std::span<const int32_t> wanted) {
    SequenceRun run;
    run.rows = static_cast<int>(tokens.size());
    run.first_position = first_position;
    run.blocks = {blocks_, blocks_};
    const StepLayout layout{run.rows, std::span(&run, 1)};
    const absl::Status status = forward_->Run(layout, tokens, wanted, communicators_[0].get());
    EXPECT_TRUE(status.ok()) << status;
  }

  void AppendLogits(int32_t row, std::vector<float>* all) {
    const Floats logits = forward_->Logits(std::span(&row, 1));
    const size_t before = all->size();
    all->resize(before + static_cast<size_t>(spec_.vocabulary));
    device_->CopyOut(Floats{logits.data, spec_.vocabulary}, std::span(*all).subspan(before));
  }

 private:
  const GgufModel model_;
  const ModelSpec spec_;
  const ShardPlan plan_;
  const std::unique_ptr<Device> device_;
  const Weights weights_;
  const std::unique_ptr<Forward> forward_;
  const std::vector<std::unique_ptr<Communicator>> communicators_;
  std::vector<int32_t> blocks_;
};

// Facet's logits at the recorded positions, in the order of the recording.
std::vector<float> RunFacet(const std::string& model_name, const std::string& device_name,
                            const Recorded& recorded) {
  Runner runner(model_name, device_name);
  std::vector<float> all;
  for (const Case& c : recorded.cases) {
    runner.Step(c.prompt, 0, c.positions);
    for (const int32_t position : c.positions) runner.AppendLogits(position, &all);
  }
  return all;
}

// Largest difference, relative to the largest logit.
double Difference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0, difference = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{b[i]}));
    difference = std::max(difference, std::abs(double{a[i]} - b[i]));
  }
  return difference / largest;
}

class ForwardTest : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(ForwardTest, LogitsAgreeWithOthers) {
  const std::string model = std::get<0>(GetParam());
  const bool quantised = model.find("quantized") != std::string::npos;
  const Recorded recorded = ReadCases(model);
  ASSERT_FALSE(recorded.cases.empty());
  const std::vector<float> facet = RunFacet(model, std::get<1>(GetParam()), recorded);
  const std::vector<float> transformers = ReadLogits(model + ".transformers.f32");
  const std::vector<float> llama_cpp = ReadLogits(model + ".llama_cpp.f32");
  ASSERT_EQ(facet.size(), transformers.size());
  ASSERT_EQ(facet.size(), llama_cpp.size());
  // Quantised activations differ from float ones by about a percent of a hidden state.
  EXPECT_LT(Difference(facet, transformers), quantised ? 6e-2 : 1e-4);
  EXPECT_LT(Difference(facet, llama_cpp), quantised ? 6e-2 : 2e-2);
  RecordProperty("difference_transformers", std::to_string(Difference(facet, transformers)));
}

// Rows whose logits nobody wants do not go through the last layer.
TEST_P(ForwardTest, LogitsDoNotDependOnWhatElseIsWanted) {
  const auto& [model, device] = GetParam();
  const Recorded recorded = ReadCases(model);
  const auto longest = std::max_element(
      recorded.cases.begin(), recorded.cases.end(),
      [](const Case& a, const Case& b) { return a.prompt.size() < b.prompt.size(); });
  // Leaves room for a token more.
  const auto prompt = std::span<const TokenId>(longest->prompt).first(longest->prompt.size() - 1);
  const auto last = static_cast<int32_t>(prompt.size()) - 1;
  ASSERT_GE(last, 3);
  std::vector<int32_t> all(prompt.size());
  std::iota(all.begin(), all.end(), 0);
  // The logits of rows last - 2 and last, and of the token after them.
  const auto run = [&](std::span<const int32_t> wanted, int32_t first_chunk) {
    Runner runner(model, device);
    std::vector<float> logits;
    const auto chunk = static_cast<size_t>(first_chunk);
    if (chunk > 0) runner.Step(prompt.first(chunk), 0, {});
    std::vector<int32_t> rows;
    for (const int32_t row : wanted) rows.push_back(row - first_chunk);
    runner.Step(prompt.subspan(chunk), first_chunk, rows);
    runner.AppendLogits(last - 2 - first_chunk, &logits);
    runner.AppendLogits(last - first_chunk, &logits);
    runner.Step(prompt.first(1), last + 1, std::vector<int32_t>{0});
    runner.AppendLogits(0, &logits);
    return logits;
  };
  const std::vector<float> expected = run(all, 0);
  const std::vector<int32_t> apart = {last - 2, last};
  const std::vector<int32_t> together = {last - 2, last - 1, last};
  EXPECT_EQ(run(apart, 0), expected);
  EXPECT_EQ(run(together, 0), expected);
  EXPECT_EQ(run(apart, last - 2), expected);
}

INSTANTIATE_TEST_SUITE_P(
    Models, ForwardTest,
    ::testing::Combine(::testing::Values("gemma", "gemma2", "gemma3", "gemma3_8h", "llama",
                                         "llama3", "gemma3_8h_quantized", "llama_quantized"),
                       ::testing::Values("reference", "cpu")),
    [](const auto& info) {
      return std::string(std::get<0>(info.param)) + "_" + std::get<1>(info.param);
    });

class CudaForwardTest : public ::testing::TestWithParam<const char*> {};

// The kernels run under the emulator.
TEST_P(CudaForwardTest, LogitsAreTheReferencesBitForBit) {
  const Recorded recorded = ReadCases(GetParam());
  ASSERT_FALSE(recorded.cases.empty());
  const std::vector<float> cuda = RunFacet(GetParam(), "cuda_emulated", recorded);
  const std::vector<float> reference = RunFacet(GetParam(), "reference", recorded);
  ASSERT_EQ(cuda.size(), reference.size());
  EXPECT_EQ(std::memcmp(cuda.data(), reference.data(), cuda.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Models, CudaForwardTest, ::testing::Values("gemma3", "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace facet
