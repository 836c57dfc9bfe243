#include "kernels/sum_tree.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/prng.h"
#include "tests/collectives/tree_oracle.h"

namespace facet {
namespace {

using ::testing::ElementsAre;

// What Finish makes of the naive roots of all ranks.
std::vector<float> FinishNaiveRoots(const SumTree& tree, int64_t elements) {
  std::vector<std::vector<float>> roots;
  for (int rank = 0; rank < tree.world(); ++rank) {
    roots.push_back(NaiveRoots(tree, rank, elements));
  }
  std::vector<const float*> addresses;
  for (int rank = 0; rank < tree.world(); ++rank) {
    for (int i = 0; i < tree.root_count(rank); ++i) {
      addresses.push_back(roots[rank].data() + i * elements);
    }
  }
  std::vector<float> out(static_cast<size_t>(elements), -1);
  tree.Finish(addresses, elements, out.data());
  return out;
}

void ExpectSameBits(const std::vector<float>& got, const std::vector<float>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << i;
  }
}

TEST(SumTree, SplitsAtTheLargestPowerOfTwoBelowTheSize) {
  EXPECT_EQ(SplitPoint(0, 2), 1);
  EXPECT_EQ(SplitPoint(0, 3), 2);
  EXPECT_EQ(SplitPoint(0, 8), 4);
  EXPECT_EQ(SplitPoint(8, 13), 12);
  EXPECT_EQ(SplitPoint(16, 33), 32);
  EXPECT_DEATH(SplitPoint(4, 5), "node \\[4, 5\\)");
}

TEST(SumTree, RootsAreTheMaximalSubtreesOfARange) {
  EXPECT_THAT(RootsOf(16, 0, 16), ElementsAre(Subtree{0, 16}));
  EXPECT_THAT(RootsOf(16, 0, 8), ElementsAre(Subtree{0, 8}));
  EXPECT_THAT(RootsOf(16, 5, 11),
              ElementsAre(Subtree{5, 6}, Subtree{6, 8}, Subtree{8, 10}, Subtree{10, 11}));
  EXPECT_THAT(RootsOf(5, 3, 5), ElementsAre(Subtree{3, 4}, Subtree{4, 5}));
  EXPECT_THAT(RootsOf(5, 2, 2), ElementsAre());
}

TEST(SumTree, OrderOfAdditionsShowsInTheBits) {
  // The inputs of this file would not notice a wrong order if this failed.
  constexpr int64_t kElements = 100;
  std::vector<float> running(kElements, 0);
  for (int leaf = 0; leaf < 16; ++leaf) {
    for (int64_t i = 0; i < kElements; ++i) running[i] += LeafValue(leaf, i);
  }
  EXPECT_NE(running, NaiveTreeSums(16, kElements));
}

TEST(SumTree, EveryDegreeGivesTheBitsOfTheNaiveTree) {
  for (int leaves = 1; leaves <= 40; ++leaves) {
    for (const int64_t elements : {0, 1, 3, 16, 511, 512, 513, 1500}) {
      const std::vector<float> want = NaiveTreeSums(leaves, elements);
      for (int world = 1; world <= leaves; world += world < 9 ? 1 : 7) {
        SCOPED_TRACE(fmt::format("{} leaves, {} ranks, {} elements", leaves, world, elements));
        ExpectSameBits(FinishNaiveRoots(SumTree(leaves, EvenRanks(leaves, world)), elements), want);
      }
    }
  }
}

TEST(SumTree, AnyUnevenOwnershipGivesTheSameBits) {
  constexpr uint64_t kSeed = 20240607;
  for (uint64_t round = 0; round < 300; ++round) {
    SCOPED_TRACE(fmt::format("seed {}, round {}", kSeed, round));
    const int leaves = 1 + static_cast<int>(Mix64(kSeed, round) % 33);
    const int world = 1 + static_cast<int>(Mix64(kSeed + 1, round) % 8);
    std::vector<int> begin = {0, leaves};
    for (int rank = 1; rank < world; ++rank) {  // a rank may own nothing
      begin.push_back(static_cast<int>(Mix64(kSeed + 2, round * 8 + rank) % (leaves + 1)));
    }
    std::sort(begin.begin(), begin.end());
    ExpectSameBits(FinishNaiveRoots(SumTree(leaves, begin), 37), NaiveTreeSums(leaves, 37));
  }
}

TEST(SumTree, ANodeOfOneRankIsATreeOfItsOwn) {
  // How a rank reduces leaves [8, 13) to a root: the shape depends on the size only.
  SumTree node(5, {0, 1, 2, 3, 4, 5});
  std::vector<float> leaves;
  for (int leaf = 8; leaf < 13; ++leaf) leaves.push_back(LeafValue(leaf, 7));
  std::vector<const float*> addresses;
  for (const float& leaf : leaves) addresses.push_back(&leaf);
  float sum = 0;
  node.Finish(addresses, 1, &sum);
  EXPECT_EQ(sum, NaiveTreeSum(8, 13, 7));
}

TEST(SumTreeDeathTest, RefusesRangesThatDoNotCoverTheLeaves) {
  EXPECT_DEATH(SumTree(4, {0, 3}), "must own \\[0, 4\\)");
  EXPECT_DEATH(SumTree(4, {0, 3, 2, 4}), "ascending");
  SumTree tree(4, {0, 2, 4});
  float out = 0;
  EXPECT_DEATH(tree.Finish({}, 1, &out), "0 roots given, the tree has 2");
}

}  // namespace
}  // namespace facet
