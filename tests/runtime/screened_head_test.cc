// With the output layer screened or read whole, every request gets the same tokens: at every
// degree, on every device, alone and among others.

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "base/prng.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

constexpr int kVocabulary = 300;  // below every tiny model's

struct Options {
  std::string model;
  int world = 1;
  std::string device = "auto";
  bool screened = true;
};

std::vector<Output> RunAll(const Options& options, std::vector<EngineRequest> requests,
                           HeadReads* reads = nullptr) {
  GroupOptions group_options;
  group_options.rank.model_path = "tests/golden/tiny/" + options.model + ".gguf";
  group_options.rank.kv_tokens = 2048;
  group_options.rank.step_tokens_max = 128;
  group_options.rank.sequences_max = 16;
  group_options.rank.device = options.device;
  group_options.rank.screened_head = options.screened;
  group_options.world = options.world;
  auto group = InProcessGroup::Start(group_options);
  EXPECT_TRUE(group.ok()) << group.status();
  std::vector<Output> outputs = (*group)->Run(std::move(requests));
  if (reads != nullptr) *reads = (*group)->leader().TakeTimes().head;
  return outputs;
}

EngineRequest Request(int index, int max_tokens) {
  std::vector<TokenId> prompt;
  for (int i = 0; i < 3 + 7 * index; ++i) {
    prompt.push_back(static_cast<TokenId>(Mix64(index, i) % kVocabulary));
  }
  EngineRequest request = GreedyRequest(std::move(prompt), max_tokens);
  request.logits_digest = false;
  request.seed = index;
  return request;
}

// One of each kind that a search can answer.
std::vector<EngineRequest> Requests(int max_tokens) {
  std::vector<EngineRequest> requests;
  for (int i = 0; i < 6; ++i) requests.push_back(Request(i, max_tokens));
  requests[1].sampling.temperature = 1;
  requests[2].sampling.temperature = 2;
  requests[2].sampling.logit_bias = {{3, -5.0f}, {17, 2.0f}, {40, -INFINITY}};
  requests[3].sampling.repetition_penalty = 1.3f;
  requests[3].sampling.frequency_penalty = 0.4f;
  requests[4].sampling.temperature = 0.8f;
  requests[4].sampling.top_k = 20;
  requests[4].sampling.top_p = 0.9f;
  requests[5].sampling.temperature = 2;
  requests[5].sampling.presence_penalty = 0.6f;
  requests[5].sampling.logit_bias = {{9, -1.0f}};
  return requests;
}

void ExpectSame(const std::vector<Output>& a, const std::vector<Output>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_FALSE(a[i].tokens.empty());
    EXPECT_EQ(a[i].tokens, b[i].tokens) << "request " << i;
  }
}

class ScreenedHeadTest : public ::testing::TestWithParam<const char*> {};

TEST_P(ScreenedHeadTest, EveryDegreeAndBatch) {
  const std::vector<Output> whole = RunAll({GetParam(), 1, "auto", false}, Requests(24));
  for (const int world : {1, 2, 3}) {
    SCOPED_TRACE(world);
    ExpectSame(RunAll({GetParam(), world}, Requests(24)), whole);
    for (size_t i = 0; i < whole.size(); ++i) {  // alone, and so few rows that they are screened
      HeadReads reads;
      ExpectSame(RunAll({GetParam(), world}, {Requests(24)[i]}, &reads), {whole[i]});
      EXPECT_GT(reads.rows, 0);
    }
  }
}

TEST_P(ScreenedHeadTest, EveryDevice) {
  const std::vector<Output> whole = RunAll({GetParam(), 1, "reference", false}, Requests(12));
  for (const char* device : {"reference", "avx2", "avx512"}) {
    if (std::string(device) == "avx512" && !__builtin_cpu_supports("avx512vnni")) continue;
    SCOPED_TRACE(device);
    for (size_t i = 0; i < whole.size(); ++i) {
      ExpectSame(RunAll({GetParam(), 2, device}, {Requests(12)[i]}), {whole[i]});
    }
  }
}

// A row that needs its logits makes its neighbours' be computed too, and changes none of them.
TEST_P(ScreenedHeadTest, AmongRequestsForLogProbabilitiesAndLogits) {
  std::vector<EngineRequest> requests = Requests(24);
  const std::vector<Output> alone = RunAll({GetParam(), 2}, requests);
  for (const bool whole : {false, true}) {
    SCOPED_TRACE(whole);
    std::vector<EngineRequest> more = requests;
    more.push_back(Request(6, 10));
    more.back().logprobs = 3;
    more.back().logits_digest = whole;
    std::vector<Output> together = RunAll({GetParam(), 2}, more);
    EXPECT_EQ(together.back().tokens.front().top.size(), 3u);
    together.pop_back();
    ExpectSame(together, alone);
  }
}

// Log-probabilities are the same bits whether rows are searched or written and looked at, and where
// they are all that is asked for every row is searched.
TEST_P(ScreenedHeadTest, LogProbabilitiesAreSearchedFor) {
  std::vector<EngineRequest> searched = Requests(12);
  for (size_t i = 0; i < searched.size(); ++i) searched[i].logprobs = static_cast<int>(i % 4);
  std::vector<EngineRequest> written = searched;
  for (EngineRequest& request : written) request.logits_digest = true;
  for (const int world : {1, 2, 3}) {
    SCOPED_TRACE(world);
    HeadReads reads;
    const std::vector<Output> expected = RunAll({GetParam(), world}, written, &reads);
    EXPECT_EQ(reads.rows, 0);
    const std::vector<Output> got = RunAll({GetParam(), world}, searched, &reads);
    EXPECT_GT(reads.rows, 0);
    ExpectSame(got, expected);
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LT(got[i].tokens.front().logprob, 0);
      EXPECT_EQ(got[i].tokens.front().top.size(), i % 4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ScreenedHeadTest,
                         ::testing::Values("gemma3_8h_quantized", "gemma3_8h", "gemma2",
                                           "llama_quantized"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace facet::testing
