// The recordings are whole and plausible: a mistake in a script would show here before it misled a
// test of ours.

#include "tests/golden/golden.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace facet::golden {
namespace {

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

struct RealModel {
  std::string name;
  size_t prompts;
  size_t answer_tokens;
  size_t text_tokens;
};

class RealModelRecording : public testing::TestWithParam<RealModel> {};

TEST_P(RealModelRecording, HasEveryAnswerWithProbabilities) {
  const std::vector<Answer> answers = ReadAnswers(GetParam().name);
  EXPECT_EQ(answers.size(), GetParam().prompts);
  for (const Answer& answer : answers) {
    EXPECT_FALSE(answer.prompt.empty()) << answer.name;
    EXPECT_EQ(answer.ids.size(), GetParam().answer_tokens) << answer.name;
    EXPECT_EQ(answer.log_probabilities.size(), answer.ids.size()) << answer.name;
    EXPECT_THAT(answer.log_probabilities, testing::Each(testing::Le(0.0))) << answer.name;
    EXPECT_GT(Mean(answer.log_probabilities), -2.5) << answer.name;
  }
}

TEST_P(RealModelRecording, PerplexityIsThatOfItsLogProbabilities) {
  const TextLikelihood text = ReadText(GetParam().name);
  ASSERT_EQ(text.ids.size(), GetParam().text_tokens);
  ASSERT_EQ(text.log_probabilities.size(), text.ids.size() - 1);
  EXPECT_NEAR(text.perplexity, std::exp(-Mean(text.log_probabilities)), 1e-3 * text.perplexity);
  EXPECT_LT(text.perplexity, 30);
}

INSTANTIATE_TEST_SUITE_P(All, RealModelRecording,
                         testing::Values(RealModel{"gemma3_270m", 20, 64, 4000},
                                         RealModel{"smollm2_135m", 8, 32, 2000}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace facet::golden
