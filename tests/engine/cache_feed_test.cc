#include "shard_worker/engine/cache_feed.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace facet {
namespace {

using ::testing::ElementsAre;

TEST(CacheFeed, BeginsWithAllThereIsInMessagesOfBoundedSize) {
  const std::vector<uint64_t> links = {5, 3, 9, 1, 7};
  CacheFeed feed(2, links);
  CachePart part = feed.Take();
  EXPECT_TRUE(part.reset);
  EXPECT_THAT(part.stored, ElementsAre(5, 3));
  EXPECT_TRUE(feed.full());
  part = feed.Take();
  EXPECT_FALSE(part.reset);
  EXPECT_THAT(part.stored, ElementsAre(9, 1));
  EXPECT_FALSE(feed.full());
  EXPECT_THAT(feed.Take().stored, ElementsAre(7));
  EXPECT_TRUE(feed.empty());
}

TEST(CacheFeed, AnEmptyCacheIsNewsOnce) {
  CacheFeed feed(2, {});
  EXPECT_FALSE(feed.empty());
  EXPECT_TRUE(feed.Take().reset);
  EXPECT_TRUE(feed.empty());
}

TEST(CacheFeed, TellsTheLastChangeOfALink) {
  CacheFeed feed(8, {});
  feed.Take();
  feed.Add({{1, 2, 3}, {4}});
  feed.Add({{4}, {2}});
  const CachePart part = feed.Take();
  EXPECT_THAT(part.stored, ElementsAre(1, 3, 4));
  EXPECT_THAT(part.evicted, ElementsAre(2));
  EXPECT_TRUE(feed.empty());
}

}  // namespace
}  // namespace facet
