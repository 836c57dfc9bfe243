#include "shard_worker/engine/block_manager.h"

#include <gtest/gtest.h>

#include <set>

namespace facet {
namespace {

int Held(const BlockTable& table, int pool) {
  int held = 0;
  for (int32_t id : table.blocks[pool]) held += id >= 0;
  return held;
}

TEST(BlockManager, GrowsBothPoolsAndReleasesAll) {
  BlockManager blocks(4, {8, 6}, 5);
  BlockTable table;
  blocks.Grow(&table, 9);
  EXPECT_EQ(Held(table, 0), 3);
  EXPECT_EQ(Held(table, 1), 3);
  EXPECT_EQ(blocks.pool(0).referenced(), 3);
  blocks.Release(&table);
  EXPECT_EQ(blocks.pool(0).referenced(), 0);
  EXPECT_EQ(blocks.pool(1).referenced(), 0);
  EXPECT_TRUE(table.blocks[0].empty());
}

TEST(BlockManager, TwoTablesNeverShareABlock) {
  BlockManager blocks(2, {10, 0}, 0);
  BlockTable a, b;
  for (int64_t end = 1; end <= 10; ++end) {
    blocks.Grow(&a, end);
    blocks.Grow(&b, end);
  }
  std::set<int32_t> ids(a.blocks[0].begin(), a.blocks[0].end());
  ids.insert(b.blocks[0].begin(), b.blocks[0].end());
  EXPECT_EQ(ids.size(), 10u);
}

TEST(BlockManager, ReachStopsWhereAPoolIsEmpty) {
  BlockManager blocks(4, {8, 2}, 100);
  BlockTable table;
  EXPECT_EQ(blocks.Reach(table, 7), 7);
  EXPECT_EQ(blocks.Reach(table, 9), 8);
  blocks.Grow(&table, 8);
  EXPECT_EQ(blocks.Reach(table, 9), 8);
}

// A block of the window pool stays exactly as long as some position of it is still read.
TEST(BlockManager, WindowBlockIsFreedWhenTheWindowHasPassedIt) {
  for (int64_t window : {1, 2, 3, 4, 5, 8, 9}) {
    for (int block : {1, 2, 3, 4}) {
      BlockManager blocks(block, {0, 64}, window);
      BlockTable table;
      for (int64_t next = 1; next < 40; ++next) {
        blocks.Grow(&table, next);
        blocks.Leave(&table, next);
        for (int64_t i = 0; i < static_cast<int64_t>(table.blocks[1].size()); ++i) {
          const bool read = (i + 1) * block - 1 > next - window;
          EXPECT_EQ(table.blocks[1][i] >= 0, read) << window << " " << block << " " << next;
        }
      }
      blocks.Release(&table);
      EXPECT_EQ(blocks.pool(1).referenced(), 0);
    }
  }
}

// The claim behind Capacity(): a pool that can hold a window anywhere never runs out for one
// sequence that goes token by token.
TEST(BlockManager, OneSequenceFitsWhateverItsLengthIfTheWindowDoes) {
  for (int64_t window : {1, 2, 3, 5, 8, 9}) {
    for (int block : {1, 2, 3, 4}) {
      const int needed = static_cast<int>((window - 1 + block - 1) / block + 1);
      BlockManager blocks(block, {0, needed}, window);
      EXPECT_EQ(blocks.Capacity(1000), 1000);
      BlockTable table;
      for (int64_t next = 1; next < 100; ++next) {
        ASSERT_EQ(blocks.Reach(table, next), next) << window << " " << block;
        blocks.Grow(&table, next);
        blocks.Leave(&table, next);
      }
      BlockManager smaller(block, {0, std::max(1, needed - 1)}, window);
      if (needed > 1) {
        EXPECT_EQ(smaller.Capacity(1000), (needed - 1) * block);
      }
    }
  }
}

TEST(BlockManager, LackingCountsWhatAnAdmissionStillNeeds) {
  BlockManager blocks(4, {16, 16}, 6);
  BlockTable table;
  EXPECT_EQ(blocks.Lacking(0, table, 20), 5);
  EXPECT_EQ(blocks.Lacking(1, table, 20), 3);  // a window of 6 touches at most 3 blocks of 4
  blocks.Grow(&table, 12);
  EXPECT_EQ(blocks.Lacking(0, table, 20), 2);
  blocks.Leave(&table, 12);
  EXPECT_EQ(table.left_behind, 1);
  EXPECT_EQ(blocks.Lacking(1, table, 20), 1);
}

}  // namespace
}  // namespace facet
