// The real models against what llama.cpp said of the same files: the log-probabilities of its own
// greedy answers, and the perplexity of a text (tests/golden/README.md).

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>

#include <fmt/format.h>

#include "tests/golden/golden.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

struct RealModel {
  std::string recording;
  std::string file;
  // What Facet itself says of the recorded text, to the last bit and on every device: the sum of
  // its tokens' log-probabilities. It changes where the arithmetic does, which is then a new
  // kArithmeticVersion (runtime/rank.cc).
  double log_likelihood;
};

std::unique_ptr<InProcessGroup> Start(const RealModel& model, bool screened_head = true) {
  const char* directory = std::getenv("FACET_MODEL_DIR");
  GroupOptions options;
  options.rank.model_path =
      std::string(directory != nullptr ? directory : ".cache/models") + "/" + model.file;
  options.rank.kv_tokens = 8192;
  options.rank.threads = 1;
  options.rank.screened_head = screened_head;
  options.world = 2;
  EXPECT_TRUE(std::filesystem::exists(options.rank.model_path))
      << options.rank.model_path << " is missing: deploy/local/fetch_models.sh";
  auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  return *std::move(group);
}

// Facet's log-probabilities of tokens[1:], each after all before it.
EngineRequest Score(std::vector<TokenId> tokens) {
  EngineRequest request;
  request.prompt_length = static_cast<int>(tokens.size());
  request.tokens = std::move(tokens);
  request.prompt_logprobs = true;
  request.logprobs = 0;
  request.max_tokens = 0;
  return request;
}

class RealModelTest : public ::testing::TestWithParam<RealModel> {};

TEST_P(RealModelTest, AnswersOfLlamaCppAreAsLikelyHere) {
  const std::vector<golden::Answer> answers = golden::ReadAnswers(GetParam().recording);
  std::vector<EngineRequest> requests;
  for (const golden::Answer& answer : answers) {
    std::vector<TokenId> tokens = answer.prompt;
    tokens.insert(tokens.end(), answer.ids.begin(), answer.ids.end());
    requests.push_back(Score(std::move(tokens)));
  }
  const std::vector<Output> outputs = Start(GetParam())->Run(std::move(requests));
  double difference = 0;
  int count = 0;
  for (size_t i = 0; i < answers.size(); ++i) {
    const golden::Answer& answer = answers[i];
    ASSERT_EQ(outputs[i].prompt.size(), answer.prompt.size() + answer.ids.size() - 1);
    for (size_t t = 0; t < answer.ids.size(); ++t) {
      const ScoredToken& scored = outputs[i].prompt[answer.prompt.size() - 1 + t];
      ASSERT_EQ(scored.id, answer.ids[t]);
      difference += std::abs(scored.logprob - answer.log_probabilities[t]);
      ++count;
    }
  }
  std::printf("%s: mean |log-probability difference| %.4f over %d tokens\n",
              GetParam().recording.c_str(), difference / count, count);
  EXPECT_LT(difference / count, 0.05);
}

TEST_P(RealModelTest, PerplexityOfATextAgrees) {
  const golden::TextLikelihood text = golden::ReadText(GetParam().recording);
  const std::vector<Output> outputs = Start(GetParam())->Run({Score(text.ids)});
  ASSERT_EQ(outputs[0].prompt.size(), text.ids.size() - 1);
  double sum = 0;
  for (const ScoredToken& token : outputs[0].prompt) sum += token.logprob;
  const double perplexity = std::exp(-sum / static_cast<double>(outputs[0].prompt.size()));
  std::printf("%s: perplexity %.4f, llama.cpp %.4f\n", GetParam().recording.c_str(), perplexity,
              text.perplexity);
  EXPECT_NEAR(perplexity / text.perplexity, 1, 0.005);
  EXPECT_EQ(sum, GetParam().log_likelihood) << fmt::format("{:.17g}", sum);
}

// A step reads every packed byte once: no format of these files widens in memory.
TEST_P(RealModelTest, PackedWeightsAreAsLargeAsInTheFile) {
  const RankMemory memory = Start(GetParam())->leader().memory();
  EXPECT_GT(memory.slice_bytes, 0);
  EXPECT_LE(static_cast<double>(memory.weight_bytes),
            1.1 * static_cast<double>(memory.slice_bytes));
}

// 64 tokens of every recorded prompt, one request at a time and four at a time.
TEST_P(RealModelTest, ScreeningTheHeadChangesNoToken) {
  const auto screened = Start(GetParam());
  const auto whole = Start(GetParam(), false);
  std::vector<EngineRequest> requests;
  for (const golden::Answer& answer : golden::ReadAnswers(GetParam().recording)) {
    EngineRequest request = GreedyRequest(answer.prompt, 64);
    request.logits_digest = false;
    request.seed = requests.size();
    switch (requests.size() % 4) {
      case 1:
        request.sampling.temperature = 1;
        break;
      case 2:
        request.sampling.temperature = 2;
        request.sampling.repetition_penalty = 1.2f;
        request.sampling.logit_bias = {{5, -2.0f}, {107, 1.5f}};
        break;
      case 3:
        request.sampling.temperature = 1;
        request.sampling.top_k = 64;
        request.sampling.top_p = 0.95f;
        break;
    }
    requests.push_back(std::move(request));
    if (requests.size() == 8) break;
  }
  const auto ids = [](InProcessGroup& group, std::vector<EngineRequest> some) {
    std::vector<std::vector<TokenId>> result;
    for (const Output& output : group.Run(std::move(some))) result.push_back(output.ids());
    return result;
  };
  for (const EngineRequest& request : requests) {
    EXPECT_EQ(ids(*screened, {request}), ids(*whole, {request}));
    const HeadReads reads = screened->leader().TakeTimes().head;
    std::printf("temperature %.1f top_k %d: %.2f of the rows screened, %.4f completed\n",
                request.sampling.temperature, request.sampling.top_k,
                static_cast<double>(reads.screened) / static_cast<double>(reads.rows),
                static_cast<double>(reads.completed) / static_cast<double>(reads.rows));
    if (request.sampling.temperature == 0) {
      EXPECT_GT(reads.screened, 0);
      EXPECT_LT(reads.completed, reads.screened / 2);
    }
  }
  requests.resize(4);
  EXPECT_EQ(ids(*screened, requests), ids(*whole, requests));
}

INSTANTIATE_TEST_SUITE_P(
    Models, RealModelTest,
    ::testing::Values(RealModel{"gemma3_270m", "gemma-3-270m-q4_k_m.gguf", -11851.067363262177},
                      RealModel{"smollm2_135m", "SmolLM2-135M-Instruct.Q4_1.gguf",
                                -6175.1074380874634}),
    [](const auto& info) { return info.param.recording; });

}  // namespace
}  // namespace facet::testing
