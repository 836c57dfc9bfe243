// Decode steps on the CUDA device, whose launches are replayed as graphs, against the same device
// that launches each kernel: the same bits, whatever changes from step to step.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <functional>
#include <numeric>
#include <set>
#include <thread>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/collectives/device_collectives.h"
#include "kernels/collectives/local.h"
#include "kernels/collectives/staged.h"
#include "shard_worker/model/forward.h"
#include "tests/model/replay_devices.h"

namespace facet {
namespace {

constexpr int kBlockTokens = 32;
constexpr int kBlocksOfSequence = 5;
constexpr int kSequences = 8;
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

// What a group of ranks is made of.
struct GroupOfRanks {
  std::string model;
  int world = 1;
  KvType kv_type = KvType::kF16;
  int long_prompt = 0;
  bool on_devices = false;  // the ranks' devices exchange data without the hosts
};

void Load(const GroupOfRanks& group, int rank, std::unique_ptr<Device> device,
          std::unique_ptr<Communicator> communicator, TestRank* to) {
  to->device = std::move(device);
  auto model = GgufModel::Open("tests/golden/tiny/" + group.model + ".gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  to->model = std::make_unique<GgufModel>(*std::move(model));
  to->spec = *ReadModelSpec(*to->model);
  to->plan =
      std::make_unique<ShardPlan>(*ShardPlan::Make(*to->model, to->spec, communicator->world()));
  auto weights = LoadWeights(*to->model, to->spec, *to->plan, rank, to->device.get(), false, {});
  ASSERT_TRUE(weights.ok()) << weights.status();
  to->weights = std::make_unique<Weights>(*std::move(weights));
  auto forward = Forward::Create(to->spec, *to->plan, rank, *to->weights, to->device.get(),
                                 kRowsMax, kSequences);
  ASSERT_TRUE(forward.ok()) << forward.status();
  to->forward = *std::move(forward);
  auto pools = to->forward->pools();
  for (KvPoolSpec& pool : pools) {
    pool.blocks = pool.layers > 0 ? kSequences * kBlocksOfSequence : 0;
    pool.block_tokens = kBlockTokens;
    pool.type = group.kv_type;
  }
  ASSERT_TRUE(to->device->AllocateKv(pools).ok());
  to->slices = to->plan->Slices(rank);
  if (group.on_devices) {
    auto joined = to->device->collectives()->Join(std::move(communicator));
    ASSERT_TRUE(joined.ok()) << joined.status();
    to->communicator = *std::move(joined);
  } else {
    to->communicator = MakeStagedCommunicator(to->device.get(), std::move(communicator));
  }
  // A whole step is one exchange where devices exchange, and an instrumented device is slow.
  to->communicator->SetTimeout(std::chrono::minutes(10));
}

// Rows of the sequences named, each its next ones.
struct Share {
  int sequence = 0;
  int rows = 1;
};
using Step = std::vector<Share>;

// A long prompt and short ones, then decoding: batches that grow and shrink within a bucket and
// across them, contexts that pass the next split and the next number of splits.
std::vector<Step> Script(int long_prompt) {
  std::vector<Step> steps = {{{0, long_prompt}, {1, 2}}, {{2, 3}, {3, 1}}};
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

// A step as a device and a forward pass are told it.
struct PlannedStep {
  std::vector<SequenceRun> runs;
  std::vector<TokenId> tokens;
  std::vector<int32_t> last_rows;  // by share
};

// Block tables of all sequences, spread over the pools.
using BlockTables = std::array<std::array<int32_t, kBlocksOfSequence>, kSequences>;
BlockTables MakeBlockTables() {
  BlockTables tables;
  for (int sequence = 0; sequence < kSequences; ++sequence) {
    for (int i = 0; i < kBlocksOfSequence; ++i) tables[sequence][i] = i * kSequences + sequence;
  }
  return tables;
}

// `lengths` are those of the sequences before the step, then after it.
PlannedStep Plan(const Step& step, const BlockTables& tables, int64_t vocabulary,
                 std::array<int64_t, kSequences>* lengths) {
  PlannedStep plan;
  for (const Share& share : step) {
    int64_t& length = (*lengths)[share.sequence];
    SequenceRun& run = plan.runs.emplace_back();
    run.first_row = static_cast<int>(plan.tokens.size());
    run.rows = share.rows;
    run.first_position = length;
    run.blocks = {tables[share.sequence], tables[share.sequence]};
    for (int i = 0; i < share.rows; ++i) {
      const uint64_t random =
          Mix64(static_cast<uint64_t>(share.sequence), static_cast<uint64_t>(length++));
      plan.tokens.push_back(static_cast<TokenId>(random % static_cast<uint64_t>(vocabulary)));
    }
    plan.last_rows.push_back(static_cast<int32_t>(plan.tokens.size()) - 1);
  }
  return plan;
}

// Greedy, sampled and edited rows in turn.
void Search(TestRank* rank, int index, std::span<const int32_t> rows, Told* told) {
  const LogitEdit edit = {3, 0.5f, 1.5f, 0.25f};
  std::vector<CandidateQuery> queries(rows.size());
  for (size_t i = 0; i < queries.size(); ++i) {
    queries[i].gumbel = i % 2 == 1;
    queries[i].key = Mix64(i, static_cast<uint64_t>(index));
    queries[i].sums = true;
    queries[i].count = 2;
    if ((i + static_cast<size_t>(index)) % 3 == 0) queries[i].edits = std::span(&edit, 1);
  }
  std::vector<CandidateReply> replies(queries.size());
  rank->forward->Search(rows, rank->slices, queries, replies);
  for (const CandidateReply& reply : replies) {
    EXPECT_TRUE(reply.finite);
    for (const Candidate& c : reply.best) {
      told->ids.push_back(c.id);
      told->numbers.insert(told->numbers.end(), {c.order, c.processed, c.raw});
    }
    for (const SliceSum& s : reply.sums) told->numbers.insert(told->numbers.end(), {s.max, s.sum});
  }
}

void ReadLogits(TestRank* rank, std::span<const int32_t> rows, Told* told) {
  const Floats logits = rank->forward->Logits(rows);
  const size_t before = told->numbers.size();
  told->numbers.resize(before + rows.size() * rank->forward->vocabulary_rows());
  rank->device->CopyOut(logits, std::span(told->numbers).subspan(before));
}

// False where the step failed, after which nothing more is to be expected of the rank.
bool RunAndSearch(TestRank* rank, int index, const PlannedStep& plan, Told* told) {
  const StepLayout layout{static_cast<int>(plan.tokens.size()), plan.runs};
  rank->communicator->SetStep(static_cast<uint64_t>(index));
  const absl::Status status =
      rank->forward->Run(layout, plan.tokens, plan.last_rows, rank->communicator.get());
  EXPECT_TRUE(status.ok()) << status;
  if (status.ok()) Search(rank, index, plan.last_rows, told);
  return status.ok();
}

Told RunScript(int long_prompt, TestRank* rank) {
  Told told;
  const BlockTables tables = MakeBlockTables();
  std::array<int64_t, kSequences> lengths{};
  int index = 0;
  for (const Step& step : Script(long_prompt)) {
    const PlannedStep plan = Plan(step, tables, rank->spec.vocabulary, &lengths);
    if (!RunAndSearch(rank, ++index, plan, &told)) break;
    if (index % 4 == 0) ReadLogits(rank, plan.last_rows, &told);
  }
  return told;
}

// What each rank was told.
std::vector<Told> RunGroup(const GroupOfRanks& group, bool graphs,
                           const std::function<Told(TestRank*)>& work) {
  const int world = group.world;
  auto communicators = MakeLocalGroup(world);
  std::vector<Told> told(static_cast<size_t>(world));
  std::vector<std::thread> threads;
  for (int i = 0; i < world; ++i) {
    threads.emplace_back([&, i] {
      TestRank rank;
      Load(group, i, MakeReplayDevice(i, graphs), std::move(communicators[i]), &rank);
      if (rank.communicator != nullptr) told[i] = work(&rank);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return told;
}

void ExpectSame(const Told& replayed, const Told& launched) {
  EXPECT_EQ(replayed.ids, launched.ids);
  EXPECT_TRUE(std::ranges::equal(replayed.numbers, launched.numbers, [](float a, float b) {
    return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
  }));
}

class ReplayTest : public ::testing::TestWithParam<GroupOfRanks> {};

TEST_P(ReplayTest, ReplayedStepsGiveTheBitsOfLaunchedOnes) {
  const int world = GetParam().world;
  if (GetParam().on_devices && !ExchangeOnDevices()) {
    GTEST_SKIP() << "there are not two GPUs and NCCL";
  }
  const auto script = [](TestRank* rank) { return RunScript(GetParam().long_prompt, rank); };
  const std::optional<GraphCounts> before = CountGraphs();
  const std::vector<Told> replayed = RunGroup(GetParam(), true, script);
  if (before.has_value()) {
    const int64_t made = CountGraphs()->made - before->made;
    const int64_t launches = CountGraphs()->launches - before->launches;
    RecordProperty("graphs", std::to_string(made));
    RecordProperty("replays", std::to_string(launches));
    EXPECT_GE(launches, 8 * world);
    EXPECT_LT(made, launches);
  }
  const std::vector<Told> launched = RunGroup(GetParam(), false, script);
  for (int rank = 0; rank < world; ++rank) ExpectSame(replayed[rank], launched[rank]);
}

// Whole steps are replayed, but for two ranks whose hosts exchange what their devices have: there
// what lies between the exchanges is.
INSTANTIATE_TEST_SUITE_P(Models, ReplayTest,
                         ::testing::Values(GroupOfRanks{"gemma3", 1, KvType::kF16, 126},
                                           GroupOfRanks{"llama_quantized", 2, KvType::kF32, 62},
                                           GroupOfRanks{"llama_quantized", 2, KvType::kF32, 62,
                                                        true}),
                         [](const auto& info) {
                           return info.param.model + (info.param.on_devices ? "_on_devices" : "");
                         });

// Steps of 3 and 4 rows, then of 5 to 8, the rows' tokens now of one rank and now of the other.
std::vector<Step> StepsOfTwoBuckets() {
  return {{{0}, {1}, {2}},
          {{3}, {0}, {2}, {1}},
          {{5}, {2}, {3}},
          {{4}, {3}, {2}, {6}},
          {{0}, {1}, {2}, {3}, {4}},
          {{0}, {1}, {7}, {3}, {4}, {2}},
          {{5}, {6}, {2}, {0}, {1}, {3}, {7}},
          {{4}, {1}, {2}, {3}, {0}, {5}, {6}, {7}},
          {{4}, {7}, {1}, {2}, {0}}};
}
constexpr int kBuckets = 2;

// Which rank owns each of the tokens.
std::string OwnersOf(const ShardPlan& plan, std::span<const TokenId> tokens) {
  std::string owners;
  for (const TokenId token : tokens) owners += static_cast<char>('0' + plan.OwnerOf(token));
  return owners;
}

// Each step is searched and read before the next. Each has other owners.
Told DecodeStepByStep(TestRank* rank) {
  Told told;
  const BlockTables tables = MakeBlockTables();
  std::array<int64_t, kSequences> lengths{};
  std::set<std::string> owners;
  int index = 0;
  for (const Step& step : StepsOfTwoBuckets()) {
    const PlannedStep plan = Plan(step, tables, rank->spec.vocabulary, &lengths);
    if (!RunAndSearch(rank, ++index, plan, &told)) break;
    EXPECT_TRUE(owners.insert(OwnersOf(*rank->plan, plan.tokens)).second) << *owners.rbegin();
  }
  return told;
}

// No step is read before the next has begun, which gets the tokens of every other sequence from
// the devices.
Told DecodeAhead(TestRank* rank) {
  Told told;
  const BlockTables tables = MakeBlockTables();
  std::array<int64_t, kSequences> lengths{};
  std::vector<BestToken> unread;
  const auto read = [&] {
    const absl::Status status = rank->forward->ReadBest(unread);
    EXPECT_TRUE(status.ok()) << status;
    for (const BestToken& token : unread) told.ids.push_back(token.id);
  };
  uint64_t index = 0;
  for (const Step& step : StepsOfTwoBuckets()) {
    PlannedStep plan = Plan(step, tables, rank->spec.vocabulary, &lengths);
    std::vector<int32_t> keep;
    for (const Share& share : step) keep.push_back(share.sequence);
    for (size_t i = 0; i < step.size() && index > 0; ++i) {
      if (keep[i] % 2 == 0) plan.tokens[plan.runs[i].first_row] = RowOfKept(keep[i]);
    }
    rank->communicator->SetStep(++index);
    absl::Status status = rank->forward->Run({static_cast<int>(plan.tokens.size()), plan.runs},
                                             plan.tokens, plan.last_rows, rank->communicator.get());
    const std::vector<CandidateQuery> queries(step.size());
    status.Update(rank->forward->Ask(plan.last_rows, rank->slices, queries, keep));
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) return told;
    if (index > 1) read();
    unread.resize(step.size());
  }
  read();
  return told;
}

class ReplayOfTwoRanks : public ::testing::TestWithParam<Told (*)(TestRank*)> {};

TEST_P(ReplayOfTwoRanks, AGraphServesAllRowCountsOfABucketAndAllOwners) {
  const std::optional<GraphCounts> before = CountGraphs();
  if (!before.has_value()) GTEST_SKIP() << "nobody counts graphs";
  const GroupOfRanks group = {"llama_quantized", 2, KvType::kF16, 0, true};
  const std::vector<Told> replayed = RunGroup(group, true, GetParam());
  // Exchanges are in them. The first time of each its launches go one by one.
  const auto steps = static_cast<int>(StepsOfTwoBuckets().size());
  EXPECT_EQ(CountGraphs()->made - before->made, group.world * kBuckets);
  EXPECT_EQ(CountGraphs()->launches - before->launches, group.world * (steps - kBuckets));
  const std::vector<Told> launched = RunGroup(group, false, GetParam());
  for (int rank = 0; rank < group.world; ++rank) ExpectSame(replayed[rank], launched[rank]);
}

INSTANTIATE_TEST_SUITE_P(Decoding, ReplayOfTwoRanks,
                         ::testing::Values(DecodeStepByStep, DecodeAhead), [](const auto& info) {
                           return info.param == DecodeAhead ? "Ahead" : "StepByStep";
                         });

}  // namespace
}  // namespace facet
