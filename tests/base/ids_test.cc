#include "base/ids.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

#include "absl/container/flat_hash_map.h"

namespace facet {
namespace {

static_assert(!std::is_convertible_v<BlockId, SlotId> && !std::is_convertible_v<int, BlockId>);
static_assert(!std::is_convertible_v<BlockId, int>);

TEST(StrongId, ComparesByValue) {
  EXPECT_EQ(BlockId{3}, BlockId{3});
  EXPECT_LT(BlockId{2}, BlockId{3});
  EXPECT_EQ(SequenceId{}.value, 0u);
}

TEST(StrongId, IsAKeyOfHashTables) {
  absl::flat_hash_map<SequenceId, int> lengths;
  std::unordered_set<GroupId> groups;
  for (uint32_t i = 0; i < 1'000; ++i) {
    lengths[SequenceId{i}] += static_cast<int>(i);
    groups.insert(GroupId{i / 2});
  }
  EXPECT_EQ(lengths.size(), 1'000u);
  EXPECT_EQ(lengths[SequenceId{7}], 7);
  EXPECT_EQ(groups.size(), 500u);
}

}  // namespace
}  // namespace facet
