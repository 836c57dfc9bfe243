#include "base/prefix_hash.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace facet {
namespace {

TEST(PrefixHash, LinksNameWholeBlocksOnly) {
  const std::vector<TokenId> tokens = {1, 2, 3, 4, 5, 6, 7};
  EXPECT_TRUE(PrefixLinks(9, tokens, 8).empty());
  EXPECT_EQ(PrefixLinks(9, tokens, 7).size(), 1u);
  EXPECT_EQ(PrefixLinks(9, tokens, 3).size(), 2u);
}

TEST(PrefixHash, EqualPrefixesHaveEqualLinksAndDifferentOnesDiffer) {
  const std::vector<TokenId> one = {1, 2, 3, 4, 5, 6};
  const std::vector<TokenId> two = {1, 2, 3, 4, 5, 7};
  const auto a = PrefixLinks(9, one, 2), b = PrefixLinks(9, two, 2);
  EXPECT_EQ(a[0], b[0]);
  EXPECT_EQ(a[1], b[1]);
  EXPECT_NE(a[2], b[2]);
}

TEST(PrefixHash, SaltOrderAndPlaceCount) {
  const std::vector<TokenId> same = {5, 5, 5, 5, 5, 5, 5, 5};
  std::set<uint64_t> links;
  for (const uint64_t salt : {0, 1, 2}) {
    for (const uint64_t link : PrefixLinks(salt, same, 2)) links.insert(link);
  }
  EXPECT_EQ(links.size(), 12u);  // a block's name depends on all before it
  const std::vector<TokenId> swapped = {6, 5};
  const std::vector<TokenId> straight = {5, 6};
  EXPECT_NE(PrefixLink(0, swapped), PrefixLink(0, straight));
}

}  // namespace
}  // namespace facet
