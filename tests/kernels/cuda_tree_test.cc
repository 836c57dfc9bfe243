// The sum tree on the CUDA device, over the emulator, against its definition.

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <bit>
#include <limits>
#include <vector>

#include "kernels/cuda/driver.h"
#include "kernels/cuda/tree_schedule.h"
#include "tests/collectives/tree_oracle.h"

namespace facet::cuda {
namespace {

// The roots of all ranks in device memory, `gap` floats apart from each other, added there.
std::vector<float> AddOnDevice(const SumTree& tree, int64_t elements, int64_t gap) {
  TreeSum sum;
  ScheduleTree(tree, &sum);
  sum.stride = elements + gap;
  sum.elements = elements;
  std::vector<float> roots;
  for (int rank = 0; rank < tree.world(); ++rank) {
    const std::vector<float> mine = NaiveRoots(tree, rank, elements);
    for (int root = 0; root < tree.root_count(rank); ++root) {
      roots.insert(roots.end(), mine.begin() + root * elements,
                   mine.begin() + (root + 1) * elements);
      roots.resize(roots.size() + gap, std::numeric_limits<float>::quiet_NaN());
    }
  }
  const Stream stream = *MakeStream();
  const auto bytes = [](size_t floats) { return static_cast<int64_t>(floats * sizeof(float)); };
  auto* const on_device = static_cast<float*>(*Allocate(bytes(roots.size() + 1)));
  sum.roots = on_device;
  sum.out = static_cast<float*>(*Allocate(bytes(elements + 1)));
  std::vector<float> out(static_cast<size_t>(elements));
  EXPECT_TRUE(CopyToDevice(on_device, roots.data(), bytes(roots.size()), stream).ok());
  EXPECT_EQ(SumTreeRoots(stream, sum), 0);
  EXPECT_TRUE(CopyToHost(out.data(), sum.out, bytes(out.size()), stream).ok());
  EXPECT_TRUE(Wait(stream).ok());
  DestroyStream(stream);
  Free(on_device);
  Free(sum.out);
  return out;
}

void ExpectTheTreesSums(const SumTree& tree, int64_t elements, int64_t gap = 0) {
  SCOPED_TRACE(
      fmt::format("{} leaves, {} ranks, {} elements", tree.leaves(), tree.world(), elements));
  const std::vector<float> want = NaiveTreeSums(tree.leaves(), elements);
  const std::vector<float> got = AddOnDevice(tree, elements, gap);
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i])) << i;
  }
}

TEST(CudaTree, EveryDegreeGivesTheBitsOfTheNaiveTree) {
  for (int leaves = 1; leaves <= 33; leaves += leaves < 17 ? 1 : 8) {
    for (int world = 1; world <= std::min(leaves, 8); ++world) {
      ExpectTheTreesSums(SumTree(leaves, EvenRanks(leaves, world)), 3);
    }
  }
}

TEST(CudaTree, EverySizeGivesTheBitsOfTheNaiveTree) {
  for (const int64_t elements : {0, 1, 127, 128, 129, 300}) {
    ExpectTheTreesSums(SumTree(13, EvenRanks(13, 3)), elements, 5);
  }
}

TEST(CudaTree, SingleLeavesMakeTheDeepestSchedule) {
  std::vector<int> begin;
  for (int leaf = 0; leaf <= 511; ++leaf) begin.push_back(leaf);
  ExpectTheTreesSums(SumTree(511, begin), 2);
}

TEST(CudaTreeDeathTest, RefusesMoreRootsThanALaunchTakes) {
  std::vector<int> begin;
  for (int leaf = 0; leaf <= kTreeRootsMax + 1; ++leaf) begin.push_back(leaf);
  TreeSum sum;
  EXPECT_DEATH(ScheduleTree(SumTree(kTreeRootsMax + 1, begin), &sum), "a tree of 513 roots");
}

}  // namespace
}  // namespace facet::cuda
