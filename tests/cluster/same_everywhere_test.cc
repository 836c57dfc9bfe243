// The same request gives the same bits whatever serves it: one SHA-256 over the raw float32
// logits of every prompt and output position, assembled from the ranks by the real services.

#include <gtest/gtest.h>

#include <optional>
#include <thread>

#include "tests/base/patience.h"
#include "tests/cluster/cluster.h"

namespace facet::testing {
namespace {

struct Answer {
  std::vector<int32_t> ids;
  std::string text;
  std::string logits_sha256;
  friend bool operator==(const Answer&, const Answer&) = default;
};

v1::GenerateRequest Greedy(const std::string& prompt, int max_tokens) {
  v1::GenerateRequest request;
  request.add_prompts()->set_text(prompt);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(0);
  request.set_ignore_eos(true);
  request.set_logits_digest(true);
  return request;
}

std::vector<Answer> Complete(Cluster& cluster, const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + kLong);
  v1::CompleteResponse response;
  const grpc::Status status = cluster.inference().Complete(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<Answer> answers;
  for (const v1::Choice& choice : response.choices()) {
    Answer& answer = answers.emplace_back();
    for (const v1::TokenOutput& token : choice.tokens()) answer.ids.push_back(token.id());
    answer.text = choice.text();
    answer.logits_sha256 = choice.finish().logits_sha256();
  }
  return answers;
}

constexpr char kPrompt[] =
    "The lighthouse keeper wrote in his log every evening, whether anything had happened or not. "
    "On the third of November he noted the wind, the height of the swell, two ships to the "
    "south, and then, after a long pause that left a blot of ink on the page,";

Answer One(Cluster& cluster) { return Complete(cluster, Greedy(kPrompt, 12)).at(0); }

struct Setup {
  int tensor_parallel = 1;
  std::vector<std::string> flags;
};

void ExpectSameEverywhere(const std::string& file, const std::vector<Setup>& setups) {
  std::optional<Answer> baseline;
  for (const Setup& setup : setups) {
    std::string name = "tensor-parallel " + std::to_string(setup.tensor_parallel);
    for (const std::string& flag : setup.flags) name += " " + flag;
    SCOPED_TRACE(name);
    ClusterOptions options;
    options.model = file;
    options.tensor_parallel = setup.tensor_parallel;
    options.worker_flags = setup.flags;
    options.worker_flags.insert(options.worker_flags.end(),
                                {"--allow_logits_digest", "--kv_tokens=4096"});
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    const Answer answer = One(**cluster);
    ASSERT_EQ(answer.logits_sha256.size(), 32u);
    if (!baseline) baseline = answer;
    EXPECT_EQ(answer, *baseline);
  }
}

TEST(SameEverywhere, Gemma) {
  ExpectSameEverywhere(ModelPath(kGemmaFile), {{1, {}},
                                               {2, {}},
                                               {3, {}},
                                               {4, {}},
                                               {2, {"--collective=tcp"}},
                                               {3, {"--collective=tcp"}},
                                               {1, {"--threads=2"}},
                                               {2, {"--device=avx2"}},
                                               {2, {"--prefill_chunk=1"}},
                                               {2, {"--prefill_chunk=16"}},
                                               {1, {"--prefill_chunk=63"}},
                                               {2, {"--prefill_chunk=64"}},
                                               {2, {"--prefill_chunk=65", "--threads=2"}}});
}

TEST(SameEverywhere, SmolLm2) {
  ExpectSameEverywhere(ModelPath(kSmolLm2File),
                       {{1, {}}, {2, {}}, {3, {}}, {3, {"--prefill_chunk=16"}}});
}

TEST(SameEverywhere, EightRanks) {
  const std::string model = "tests/golden/tiny/gemma3_8h_quantized.gguf";
  ExpectSameEverywhere(model, {{1, {}}, {8, {}}, {8, {"--collective=tcp"}}, {1, {"--device=reference"}}});
}

// Alone and among 1 to 15 neighbours of other lengths and parameters.
TEST(SameEverywhere, InAnyBatch) {
  ClusterOptions options;
  options.model = ModelPath(kGemmaFile);
  options.tensor_parallel = 2;
  options.worker_flags = {"--allow_logits_digest"};
  auto cluster = Cluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  const Answer alone = One(**cluster);
  for (const int neighbours : {1, 4, 15}) {
    std::vector<std::thread> clients;
    for (int i = 0; i < neighbours; ++i) {
      clients.emplace_back([&, i] {
        v1::GenerateRequest request = Greedy(std::string(kPrompt).substr(0, 7 + 13 * i), 4 + i);
        request.clear_logits_digest();
        request.mutable_sampling()->set_temperature(0.1f * static_cast<float>(i));
        request.set_seed(i);
        Complete(**cluster, request);
      });
    }
    EXPECT_EQ(One(**cluster), alone) << neighbours << " neighbours";
    for (std::thread& client : clients) client.join();
  }
}

TEST(SameEverywhere, FourSeededChoicesDifferAndRepeat) {
  std::optional<std::vector<Answer>> baseline;
  for (const int tensor_parallel : {1, 2, 3}) {
    ClusterOptions options;
    options.model = ModelPath(kGemmaFile);
    options.tensor_parallel = tensor_parallel;
    auto cluster = Cluster::Start(options);
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    v1::GenerateRequest request = Greedy(kPrompt, 16);
    request.clear_logits_digest();
    request.mutable_sampling()->set_temperature(1);
    request.mutable_sampling()->set_top_p(0.9f);
    request.set_seed(1234);
    request.set_n(4);
    const std::vector<Answer> answers = Complete(**cluster, request);
    ASSERT_EQ(answers.size(), 4u);
    for (int i = 0; i < 4; ++i) {
      for (int j = 0; j < i; ++j) EXPECT_NE(answers[i].ids, answers[j].ids);
    }
    if (!baseline) baseline = answers;
    EXPECT_EQ(answers, *baseline) << "tensor-parallel " << tensor_parallel;
    EXPECT_EQ(Complete(**cluster, request), *baseline);
  }
}

}  // namespace
}  // namespace facet::testing
