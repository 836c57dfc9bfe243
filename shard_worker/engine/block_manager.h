#ifndef FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_
#define FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_

#include <array>
#include <cstdint>
#include <vector>

#include "shard_worker/engine/step_plan.h"

namespace facet {

// The KV blocks of one sequence. blocks[pool][i] holds positions [i, i + 1) x block size; -1
// where the window has left it behind. Empty for a pool that no layer uses.
struct BlockTable {
  std::array<std::vector<int32_t>, kBlockPools> blocks;
  int left_behind = 0;  // leading entries of pool 1 that are -1
};

// Hands out KV block ids of the two pools: pool 0 keeps every key of a sequence, pool 1 only the
// sliding window's. Owns no memory: the ranks have the bytes behind each id.
// Not thread-safe; only the engine's thread uses it.
class BlockManager {
 public:
  // blocks[pool]: how many there are; 0: no layer uses the pool.
  BlockManager(int block_tokens, std::array<int, kBlockPools> blocks, int64_t window);

  // The most positions that one sequence can ever have, or `tokens` if the pools hold as many.
  int64_t Capacity(int64_t tokens) const;
  // The largest end <= `end` up to which `table` can grow now.
  int64_t Reach(const BlockTable& table, int64_t end) const;
  // Extends `table` to the positions [0, end). REQUIRES: Reach(table, end) == end.
  void Grow(BlockTable* table, int64_t end);
  // Frees the blocks of pool 1 that no layer reads once `next` is the next position to compute.
  void Leave(BlockTable* table, int64_t next);
  // Frees everything; the table is as new.
  void Release(BlockTable* table);

  // Blocks of `pool` that `table` still lacks to bring `tokens` positions to an end, chunk by
  // chunk: what an admission must leave free for it.
  int Lacking(int pool, const BlockTable& table, int64_t tokens) const;

  int free(int pool) const { return static_cast<int>(free_[pool].size()); }
  int total(int pool) const { return total_[pool]; }
  int used(int pool) const { return total(pool) - free(pool); }

 private:
  int64_t BlocksFor(int64_t tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }
  // Blocks that a window can touch, wherever it lies: the last position and those before it.
  int64_t WindowBlocks() const { return BlocksFor(window_ - 1) + 1; }

  const int block_tokens_;
  const std::array<int, kBlockPools> total_;
  const int64_t window_;
  std::array<std::vector<int32_t>, kBlockPools> free_;  // stacks
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_
