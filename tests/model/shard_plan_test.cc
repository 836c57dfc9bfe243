#include "shard_worker/model/shard_plan.h"

#include <gtest/gtest.h>

#include "base/status.h"
#include "shard_worker/model/tensor_roles.h"

namespace facet {
namespace {

constexpr char kEightHeads[] = "tests/golden/tiny/gemma3_8h_quantized.gguf";
constexpr char kNineHeads[] = "tests/golden/tiny/llama_quantized.gguf";

TEST(Cut, PiecesAreWholeUnitsThatCoverEverythingOnce) {
  for (const int64_t elements : {1, 31, 32, 33, 256, 1000, 2048, 11008}) {
    for (const int64_t unit : {1, 32, 256}) {
      for (const int most : {1, 3, 16, 64}) {
        const Cut cut(elements, unit, most);
        ASSERT_GE(cut.pieces(), 1);
        ASSERT_LE(cut.pieces(), most);
        EXPECT_EQ(cut.start(0), 0);
        EXPECT_EQ(cut.end(cut.pieces() - 1), elements);
        for (int piece = 0; piece < cut.pieces(); ++piece) {
          EXPECT_LT(cut.start(piece), cut.end(piece));
          EXPECT_EQ(cut.start(piece) % unit, 0);
        }
      }
    }
  }
}

// Every head, FFN column and vocabulary row has one owner, at every degree.
TEST(ShardPlan, RanksOwnEverythingOnce) {
  for (const char* path : {kEightHeads, kNineHeads}) {
    auto model = GgufModel::Open(path);
    ASSERT_TRUE(model.ok()) << model.status();
    auto spec = ReadModelSpec(*model);
    ASSERT_TRUE(spec.ok()) << spec.status();
    for (int world = 1; world <= 8; ++world) {
      auto plan = ShardPlan::Make(*model, *spec, world);
      if (!plan.ok()) continue;
      int64_t vocabulary = 0;
      for (int rank = 0; rank < world; ++rank) {
        EXPECT_EQ(plan->VocabularyRows(rank).begin, vocabulary);
        vocabulary = plan->VocabularyRows(rank).end;
        EXPECT_EQ(plan->OwnerOf(vocabulary - 1), rank);
        EXPECT_EQ(plan->Slices(rank).starts.back(), plan->VocabularyRows(rank).size());
      }
      EXPECT_EQ(vocabulary, spec->vocabulary);
      for (int layer = 0; layer < static_cast<int>(spec->layers.size()); ++layer) {
        int64_t heads = 0, ffn = 0;
        for (int rank = 0; rank < world; ++rank) {
          const LayerShard shard = plan->Layer(*spec, layer, rank);
          EXPECT_EQ(shard.heads.begin, heads);
          EXPECT_EQ(shard.ffn.begin, ffn);
          heads = shard.heads.end;
          ffn = shard.ffn.end;
          const int per_kv = spec->layers[layer].heads / spec->layers[layer].kv_heads;
          EXPECT_LE(shard.kv_heads.begin * per_kv, shard.heads.begin);
          EXPECT_GE(shard.kv_heads.end * per_kv, shard.heads.end);
          EXPECT_EQ(shard.ffn_leaves.starts.back(), shard.ffn.size());
        }
        EXPECT_EQ(heads, spec->layers[layer].heads);
        EXPECT_EQ(ffn, spec->layers[layer].ffn);
      }
    }
  }
}

TEST(ShardPlan, LeavesDoNotDependOnTheDegree) {
  auto model = GgufModel::Open(kEightHeads);
  ASSERT_TRUE(model.ok()) << model.status();
  auto spec = ReadModelSpec(*model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  auto one = ShardPlan::Make(*model, *spec, 1);
  auto eight = ShardPlan::Make(*model, *spec, 8);
  ASSERT_TRUE(one.ok() && eight.ok()) << eight.status();
  for (size_t layer = 0; layer < spec->layers.size(); ++layer) {
    EXPECT_EQ(one->AttentionTree(layer).leaves(), eight->AttentionTree(layer).leaves());
    EXPECT_EQ(one->FfnTree(layer).leaves(), eight->FfnTree(layer).leaves());
  }
}

TEST(ShardPlan, ImpossibleDegreeNamesThePossibleOnes) {
  auto model = GgufModel::Open(kNineHeads);
  ASSERT_TRUE(model.ok()) << model.status();
  auto spec = ReadModelSpec(*model);
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto plan = ShardPlan::Make(*model, *spec, 40);
  ASSERT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(MessageOf(plan.status()).find("splits into 1 to"), std::string::npos)
      << plan.status();
}

}  // namespace
}  // namespace facet
