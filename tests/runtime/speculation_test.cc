// A request has the same answer, to the bit, whether or not steps carry guesses of its tokens:
// greedy or sampled, with penalties, log-probabilities, stop tokens and digests of all logits, at
// every degree, with overlapped steps, and after preemptions.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/prng.h"
#include "shard_worker/runtime/sequence_slots.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 300;  // below every tiny model's
constexpr int kWordTokens = 3;

GroupOptions Options(const std::string& model, int world, int proposals_max) {
  GroupOptions options;
  options.rank.model_path = model;
  options.rank.kv_tokens = 2048;
  options.rank.step_tokens_max = 128;
  options.rank.sequences_max = 16;
  options.world = world;
  options.steps_max = 1;
  options.speculation.proposals_max = proposals_max;
  // More than a tile of logit rows, and proposals however unlikely they are.
  options.speculation.step_rows_max = 64;
  options.speculation.free_rows = 1e9;
  return options;
}

// Its text is made of a few words, so that there is something to guess, rightly and wrongly.
EngineRequest Babble(int index) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < 20 + 9 * index; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(index, i) % kVocabulary));
  }
  EngineRequest request = GreedyRequest(prompt, 40);
  request.logits_digest = index % 3 == 2;
  request.logprobs = index % 2 == 0 ? 3 : -1;
  request.seed = static_cast<uint64_t>(index);
  SamplingParams& sampling = request.sampling;
  for (TokenId id = 0; id < kWordTokens; ++id) sampling.logit_bias.emplace_back(7 * id + index, 60);
  if (index % 4 != 0) {
    sampling.temperature = 1.3f;
    sampling.frequency_penalty = 0.2f;
    sampling.repetition_penalty = 1.1f;
  }
  if (index % 4 == 2) sampling.top_p = 0.95f;
  if (index % 4 == 3) sampling.top_k = 5;
  if (index == 5) request.stop_token_ids = {299, static_cast<TokenId>(7 + index)};
  return request;
}

std::vector<EngineRequest> Requests() {
  std::vector<EngineRequest> requests;
  for (int index = 0; index < 8; ++index) requests.push_back(Babble(index));
  return requests;
}

class SpeculationTest : public ::testing::TestWithParam<const char*> {
 protected:
  void ExpectSameAnswers(const GroupOptions& options) {
    auto plain = InProcessGroup::Start(Options(GetParam(), 1, /*proposals_max=*/0));
    auto speculating = InProcessGroup::Start(options);
    ASSERT_TRUE(plain.ok() && speculating.ok()) << plain.status() << speculating.status();
    const std::vector<Output> expected = (*plain)->Run(Requests());
    const std::vector<Output> outputs = (*speculating)->Run(Requests());
    for (size_t i = 0; i < outputs.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(outputs[i].tokens, expected[i].tokens);
      EXPECT_EQ(outputs[i].finish, expected[i].finish);
      EXPECT_EQ(outputs[i].logits_sha256, expected[i].logits_sha256);
    }
    EXPECT_EQ((*plain)->stats().proposed_tokens, 0);
    stats_ = (*speculating)->stats();
    EXPECT_GE(stats_.accepted_tokens, 20);
    EXPECT_GE(stats_.proposed_tokens - stats_.accepted_tokens, 20);
  }

  EngineStats stats_;  // of the last comparison
};

TEST_P(SpeculationTest, AtEveryDegree) {
  for (const int world : {1, 2, 3}) {
    SCOPED_TRACE(world);
    ExpectSameAnswers(Options(GetParam(), world, 6));
  }
}

TEST_P(SpeculationTest, WithOverlappedSteps) {
  GroupOptions options = Options(GetParam(), 2, 6);
  options.steps_max = 2;
  ExpectSameAnswers(options);
}

// A pool so small that sequences preempt each other, while some of them have proposals.
TEST_P(SpeculationTest, AfterPreemptions) {
  GroupOptions options = Options(GetParam(), 2, 6);
  options.rank.kv_tokens = 256;
  ExpectSameAnswers(options);
  EXPECT_GT(stats_.preemptions, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, SpeculationTest,
                         ::testing::Values("tests/golden/tiny/gemma3_8h_quantized.gguf",
                                           "tests/golden/tiny/gemma2.gguf",
                                           "tests/golden/tiny/llama_quantized.gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name = name.substr(name.rfind('/') + 1);
                           return name.substr(0, name.find('.'));
                         });

// What penalties make of proposals before a row is what they make of tokens that were sampled.
TEST(SequenceStateTest, AssumedTokensCountAsIfAppended) {
  const auto fields = [](const LogitEdit& e) {
    return std::tuple(e.row, e.bias, e.repetition, e.subtract);
  };
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SequenceStart start;
    for (uint64_t i = 0; i < 10; ++i) start.history.push_back(Mix64(seed, i) % 30);
    start.prompt_length = static_cast<int>(seed % 10);
    start.sampling.presence_penalty = seed % 3 == 0 ? 0 : 0.3f;
    start.sampling.frequency_penalty = seed % 5 == 0 ? 0 : 0.7f;
    start.sampling.repetition_penalty = seed % 2 == 0 ? 1 : 1.3f;
    start.sampling.logit_bias = {{3, 1.5f}, {11, -2}};
    if (seed % 30 == 0) start.history.clear();  // and no penalty
    const SequenceState before(start, 40);
    SequenceState after(start, 40);
    std::vector<TokenId> assumed;
    for (uint64_t i = 0; i < seed % 7; ++i) {
      assumed.push_back(static_cast<TokenId>(Mix64(seed, 100 + i) % 30));
      after.Append(assumed.back());
    }
    std::vector<LogitEdit> expected, edits;
    after.FindEdits(5, 20, {}, &expected);
    before.FindEdits(5, 20, assumed, &edits);
    EXPECT_TRUE(
        std::equal(edits.begin(), edits.end(), expected.begin(), expected.end(),
                   [&](const LogitEdit& a, const LogitEdit& b) { return fields(a) == fields(b); }))
        << "seed " << seed;
  }
}

}  // namespace
}  // namespace facet::testing
