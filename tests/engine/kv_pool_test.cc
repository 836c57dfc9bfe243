#include "shard_worker/engine/kv_pool.h"

#include <gtest/gtest.h>

namespace facet {
namespace {

// Takes all blocks of a pool and leaves them cached, the first one first.
KvPool Cached(int blocks) {
  KvPool pool(blocks);
  for (int i = 0; i < blocks; ++i) pool.Take();
  for (int i = 0; i < blocks; ++i) pool.Release(i, true);
  return pool;
}

TEST(KvPool, FreeBlocksAreTakenBeforeCachedOnes) {
  KvPool pool(2);
  const int32_t first = pool.Take();
  pool.Release(first, true);
  EXPECT_NE(pool.Take(), first);
  EXPECT_EQ(pool.cached(), 1);
  EXPECT_EQ(pool.Take(), first);
  EXPECT_EQ(pool.available(), 0);
}

TEST(KvPool, LeastRecentlyUsedIsTakenFirst) {
  KvPool pool = Cached(4);
  pool.Reference(0);
  pool.Release(0, true);
  EXPECT_EQ(pool.Take(), 1);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.Take(), 3);
  EXPECT_EQ(pool.Take(), 0);
}

TEST(KvPool, BlocksThatAreKeptLongAreTakenLast) {
  KvPool pool = Cached(4);
  pool.KeepLong(0);  // cached
  pool.Reference(1);
  pool.KeepLong(1);  // referenced
  pool.Release(1, true);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.Take(), 3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
  pool.Release(1, true);  // taken for others: it is an ordinary block again
  pool.Release(2, true);
  pool.KeepLong(2);
  EXPECT_EQ(pool.Take(), 1);
}

TEST(KvPool, SharedBlockIsCachedAfterItsLastUser) {
  KvPool pool(1);
  const int32_t id = pool.Take();
  pool.Reference(id);
  pool.Release(id, true);
  EXPECT_EQ(pool.referenced(), 1);
  pool.Release(id, true);
  EXPECT_EQ(pool.cached(), 1);
  pool.Drop(id);
  EXPECT_EQ(pool.free(), 1);
  EXPECT_TRUE(pool.Check().ok());
}

TEST(KvPool, ReservedBlocksAreNotAvailable) {
  KvPool pool(3);
  pool.Reserve(2);
  EXPECT_EQ(pool.available(), 1);
  pool.Take();
  EXPECT_EQ(pool.available(), 0);
  pool.Reserve(-1);
  pool.Take();
  EXPECT_EQ(pool.available(), 0);
  EXPECT_TRUE(pool.Check().ok());
}

TEST(KvPoolDeathTest, NobodyReservesWhatIsTaken) {
  KvPool pool(1);
  pool.Take();
  EXPECT_DEATH(pool.Reserve(1), "1 blocks reserved");
}

}  // namespace
}  // namespace facet
