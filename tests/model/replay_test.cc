// Decode steps on the CUDA device, whose launches are replayed as graphs, against the same device
// that launches each kernel: the same bits, whatever changes from step to step.

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <numeric>
#include <thread>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/collectives/local.h"
#include "kernels/collectives/staged.h"
#include "shard_worker/model/forward.h"
#include "tests/model/replay_devices.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 32;
constexpr int kBlocksOfSequence = 5;
constexpr int kSequences = 5;
constexpr int kRowsMax = 256;

// One rank of a tiny model.
struct TestRank {
  std::unique_ptr<Device> device;
  ModelSpec spec;
  std::unique_ptr<GgufModel> model;
  std::unique_ptr<ShardPlan> plan;
  std::unique_ptr<Weights> weights;
  std::unique_ptr<Forward> forward;
  std::unique_ptr<Communicator> communicator;
  VocabularySlices slices;
};

void Load(const std::string& name, int rank, KvType kv_type, std::unique_ptr<Device> device,
          std::unique_ptr<Communicator> communicator, TestRank* to) {
  to->device = std::move(device);
  auto model = GgufModel::Open("tests/golden/tiny/" + name + ".gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  to->model = std::make_unique<GgufModel>(*std::move(model));
  to->spec = *ReadModelSpec(*to->model);
  to->plan =
      std::make_unique<ShardPlan>(*ShardPlan::Make(*to->model, to->spec, communicator->world()));
  auto weights = LoadWeights(*to->model, to->spec, *to->plan, rank, to->device.get(), false, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  to->weights = std::make_unique<Weights>(*std::move(weights));
  auto forward =
      Forward::Create(to->spec, *to->plan, rank, *to->weights, to->device.get(), kRowsMax);
  ASSERT_TRUE(forward.ok()) << forward.status();
  to->forward = *std::move(forward);
  auto pools = to->forward->pools();
  for (KvPoolSpec& pool : pools) {
    pool.blocks = pool.layers > 0 ? kSequences * kBlocksOfSequence : 0;
    pool.block_tokens = kBlockTokens;
    pool.type = kv_type;
  }
  ASSERT_TRUE(to->device->AllocateKv(pools).ok());
  to->slices = to->plan->Slices(rank);
  to->communicator = to->device->host_memory()
                         ? std::move(communicator)
                         : MakeStagedCommunicator(to->device.get(), std::move(communicator));
}

// Rows of the sequences named, each its next ones.
struct Share {
  int sequence = 0;
  int rows = 1;
};
using Step = std::vector<Share>;

// A long prompt and short ones, then decoding: batches that grow and shrink within a bucket and
// across them, contexts that pass the next split and the next number of splits.
std::vector<Step> Script() {
  std::vector<Step> steps = {{{0, 126}, {1, 2}}, {{2, 3}, {3, 1}}};
  for (int i = 0; i < 2; ++i) steps.push_back({{1}, {2}, {3}});
  for (int i = 0; i < 4; ++i) steps.push_back({{0}, {1}, {2}});
  for (int i = 0; i < 3; ++i) steps.push_back({{3}, {0}, {2}, {1}});
  steps.push_back({{4, 2}, {0}});  // as many rows as the steps before, of other sequences
  for (int i = 0; i < 3; ++i) steps.push_back({{4}, {1}, {2}, {0}, {3}});
  for (int i = 0; i < 3; ++i) steps.push_back({{4}});
  return steps;
}

// What a search says of the last row of each share, step by step, and the logits of some steps.
struct Told {
  std::vector<float> numbers;
  std::vector<int32_t> ids;
};

Told RunScript(TestRank* rank) {
  Told told;
  std::array<int64_t, kSequences> lengths{};
  int index = 0;
  for (const Step& step : Script()) {
    std::vector<SequenceRun> runs;
    std::vector<TokenId> tokens;
    std::vector<int32_t> last_rows;
    std::array<std::array<int32_t, kBlocksOfSequence>, kSequences> blocks;
    for (const Share& share : step) {
      SequenceRun run;
      run.first_row = static_cast<int>(tokens.size());
      run.rows = share.rows;
      run.first_position = lengths[share.sequence];
      auto& table = blocks[share.sequence];
      for (int i = 0; i < kBlocksOfSequence; ++i) table[i] = i * kSequences + share.sequence;
      run.blocks = {table, table};
      runs.push_back(run);
      for (int i = 0; i < share.rows; ++i) {
        const uint64_t place = static_cast<uint64_t>(lengths[share.sequence]++);
        tokens.push_back(static_cast<TokenId>(Mix64(static_cast<uint64_t>(share.sequence), place) %
                                              rank->spec.vocabulary));
      }
      last_rows.push_back(static_cast<int32_t>(tokens.size()) - 1);
    }
    const StepLayout layout{static_cast<int>(tokens.size()), runs};
    rank->communicator->SetStep(static_cast<uint64_t>(++index));
    const absl::Status status = rank->forward->Run(layout, tokens, rank->communicator.get());
    EXPECT_TRUE(status.ok()) << status;
    std::vector<CandidateQuery> queries(last_rows.size());
    const LogitEdit edit = {3, 0.5f, 1.5f, 0.25f};
    for (size_t i = 0; i < queries.size(); ++i) {
      queries[i].gumbel = i % 2 == 1;
      queries[i].key = Mix64(i, static_cast<uint64_t>(index));
      queries[i].sums = true;
      queries[i].count = 2;
      if ((i + static_cast<size_t>(index)) % 3 == 0) queries[i].edits = std::span(&edit, 1);
    }
    std::vector<CandidateReply> replies(queries.size());
    rank->forward->Search(last_rows, rank->slices, queries, replies);
    for (const CandidateReply& reply : replies) {
      EXPECT_TRUE(reply.finite);
      for (const Candidate& candidate : reply.best) {
        told.ids.push_back(candidate.id);
        told.numbers.insert(told.numbers.end(),
                            {candidate.order, candidate.processed, candidate.raw});
      }
      for (const SliceSum& sum : reply.sums) {
        told.numbers.insert(told.numbers.end(), {sum.max, sum.sum});
      }
    }
    if (index % 4 == 0) {
      const Floats logits = rank->forward->Logits(last_rows);
      const size_t before = told.numbers.size();
      told.numbers.resize(before + last_rows.size() * rank->forward->vocabulary_rows());
      rank->device->CopyOut(logits, std::span(told.numbers).subspan(before));
    }
  }
  return told;
}

// What each rank was told.
std::vector<Told> RunGroup(const std::string& model, int world, KvType kv_type,
                           const std::function<std::unique_ptr<Device>(int)>& make_device) {
  auto communicators = MakeLocalGroup(world);
  std::vector<Told> told(static_cast<size_t>(world));
  std::vector<std::thread> threads;
  for (int i = 0; i < world; ++i) {
    threads.emplace_back([&, i] {
      TestRank rank;
      Load(model, i, kv_type, make_device(i), std::move(communicators[i]), &rank);
      if (rank.communicator != nullptr) told[i] = RunScript(&rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return told;
}

class ReplayTest : public ::testing::TestWithParam<std::tuple<const char*, int, KvType>> {};

TEST_P(ReplayTest, ReplayedStepsGiveTheBitsOfLaunchedOnes) {
  const auto [model, world, kv_type] = GetParam();
  const std::optional<GraphCounts> before = CountGraphs();
  const std::vector<Told> replayed =
      RunGroup(model, world, kv_type, [](int rank) { return MakeReplayDevice(rank, true); });
  if (before.has_value()) {
    const int64_t made = CountGraphs()->made - before->made;
    const int64_t launches = CountGraphs()->launches - before->launches;
    RecordProperty("graphs", std::to_string(made));
    RecordProperty("replays", std::to_string(launches));
    EXPECT_GE(launches, 8 * world);
    EXPECT_LT(made, launches);
  }
  const std::vector<Told> launched =
      RunGroup(model, world, kv_type, [](int rank) { return MakeReplayDevice(rank, false); });
  for (int rank = 0; rank < world; ++rank) {
    EXPECT_EQ(replayed[rank].ids, launched[rank].ids);
    ASSERT_EQ(replayed[rank].numbers.size(), launched[rank].numbers.size());
    EXPECT_EQ(std::memcmp(replayed[rank].numbers.data(), launched[rank].numbers.data(),
                          replayed[rank].numbers.size() * sizeof(float)),
              0);
  }
}

// One rank replays whole steps, two what lies between their exchanges.
INSTANTIATE_TEST_SUITE_P(Models, ReplayTest,
                         ::testing::Values(std::tuple("gemma3", 1, KvType::kF16),
                                           std::tuple("llama_quantized", 2, KvType::kF32)),
                         [](const auto& info) { return std::string(std::get<0>(info.param)); });

}  // namespace
}  // namespace facet
