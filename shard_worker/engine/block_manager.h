#ifndef FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_
#define FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/kv_pool.h"
#include "shard_worker/engine/prefix_tree.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// The KV blocks of one sequence. blocks[pool][i] holds positions [i, i + 1) x block size; -1
// where the window has left it behind. Empty for a pool that no layer uses.
struct BlockTable {
  std::array<std::vector<int32_t>, kBlockPools> blocks;
  int left_behind = 0;  // leading entries of pool 1 that are -1

  // Leading blocks that are in the prefix tree, where `tail` is the last of them.
  int stored = 0;
  PrefixNode* tail = nullptr;
  bool collided = false;  // the next block's link belongs to another prefix: no more is stored

  // Secured: the blocks for this many positions are reserved (quota: how many of each pool), so
  // that the sequence cannot be held up. 0: not secured.
  int64_t secured_tokens = 0;
  std::array<int, kBlockPools> quota = {0, 0};
};

// What a sequence's whole blocks are called and hold.
struct PrefixKey {
  uint64_t salt = 0;
  std::span<const TokenId> tokens;
  std::span<const uint64_t> links;  // of the whole blocks
  int prompt_length = 0;
};

// A cached prefix that a sequence could go on after.
struct PrefixMatch {
  int blocks = 0;                  // of the prefix; 0: none beyond what the table holds
  std::vector<PrefixNode*> nodes;  // of its blocks beyond the table's stored ones
  std::array<int, kBlockPools> cached = {0, 0};  // blocks that nobody references yet
};

// Hands out KV blocks of the two pools to the tables of sequences, and shares those that hold
// equal prefixes: pool 0 keeps every key of a sequence, pool 1 only the sliding window's.
//
// A block that is being written has one owner. A full one is never written again; Store() puts it
// into the prefix tree, where other tables find it, and it stays cached after its last user. In
// pool 0 a block is evicted before the blocks that its prefix begins with: whoever uses a block
// uses those too, and Release() lets go of the last block first.
// Owns no memory: the ranks have the bytes behind each id.
// Not thread-safe; only the engine's thread uses it.
class BlockManager {
 public:
  // blocks[pool]: how many there are; 0: no layer uses the pool.
  BlockManager(int block_tokens, std::array<int, kBlockPools> blocks, int64_t window);

  // The most positions that one sequence can ever have, or `tokens` if the pools hold as many.
  int64_t Capacity(int64_t tokens) const;
  // The largest end <= `end` up to which `table` can grow now.
  int64_t Reach(const BlockTable& table, int64_t end) const;
  // `pool` alone keeps `table` from growing to `end`.
  bool IsShort(int pool, const BlockTable& table, int64_t end) const;
  // Extends `table` to the positions [0, end). REQUIRES: Reach(table, end) == end.
  void Grow(BlockTable* table, int64_t end);
  // Takes back a Grow(): lets go of the blocks that hold none of the positions [0, end).
  // REQUIRES: none of them is stored.
  void Shrink(BlockTable* table, int64_t end);
  // Lets go of the blocks of pool 1 that no layer reads once `next` is the next position to
  // compute.
  void Leave(BlockTable* table, int64_t next);
  // Lets go of everything; the table is as new.
  void Release(BlockTable* table);

  // The longest cached prefix after which a sequence could go on with at least one token of its
  // own, if it is longer than what `table` has stored. REQUIRES: AtBoundary(table).
  PrefixMatch Match(const BlockTable& table, const PrefixKey& key) const;
  // Whether the blocks of `match` may be taken.
  bool HasRoomFor(const PrefixMatch& match) const;
  // Puts the prefix into `table`, in place of computing it. REQUIRES: HasRoomFor(match); nothing
  // has been evicted since Match().
  void Adopt(BlockTable* table, const PrefixMatch& match);
  // The leading `computed` positions of `table` are computed: others may share its whole blocks.
  // Where somebody was faster, the table gets that block in place of its own.
  void Store(BlockTable* table, const PrefixKey& key, int64_t computed);
  // `table` has nothing but stored blocks.
  bool AtBoundary(const BlockTable& table) const;

  // Blocks of `pool` that `table` lacks to bring `tokens` positions to an end, chunk by chunk, if
  // it gets its first `expected` blocks from others: what an admission must leave free for it.
  int Lacking(int pool, const BlockTable& table, int64_t tokens, int expected = 0) const;
  // The same once a new table has adopted `match`, the blocks that this takes included.
  int Cost(int pool, const PrefixMatch& match, int64_t tokens, int expected) const;

  // Blocks of `pool` that must be reserved to secure a table after it has adopted `match`.
  int SecureCost(int pool, const PrefixMatch& match, int64_t tokens) const;
  // Reserves what `table` lacks for `tokens` positions. Until Unsecure() it shares no new block of
  // pool 1, so that every block its window leaves comes back to it.
  void Secure(BlockTable* table, int64_t tokens);
  void Unsecure(BlockTable* table);

  // Of `computed` positions, those in blocks that no other table holds: what had to be computed
  // again if this one's blocks were taken.
  int64_t OnlyHere(const BlockTable& table, int64_t computed) const;
  // Whether Release(table) would make a block of `pool` available.
  bool Frees(int pool, const BlockTable& table) const;
  // Whether `table` has a block of `pool` that `other` does not have.
  bool Holds(int pool, const BlockTable& table, const BlockTable& other) const;

  const KvPool& pool(int pool) const { return pools_[pool]; }
  PrefixTree& tree() { return tree_; }
  const PrefixTree& tree() const { return tree_; }

  // Internal, with a sentence, if the blocks are not what these tables (all that there are) say.
  absl::Status Check(std::span<const BlockTable* const> tables) const;

 private:
  bool uses(int pool) const { return pools_[pool].total() > 0; }
  int64_t BlocksFor(int64_t tokens) const { return (tokens + block_tokens_ - 1) / block_tokens_; }
  // Blocks that a window can touch, wherever it lies: the last position and those before it.
  int64_t WindowBlocks() const { return BlocksFor(window_ - 1) + 1; }
  // The first block of pool 1 that is read when position `next` is computed.
  int64_t FirstRead(int64_t next) const;
  int64_t Limit(int pool, const BlockTable& table) const;
  int64_t Beyond(int pool, int64_t covered, int64_t tokens, int64_t held) const;
  int32_t Take(int pool);
  void ReleaseBlock(int pool, int32_t id);
  void Share(BlockTable* table, int index, PrefixNode* node, int pool);
  void KeepPromptEnd(PrefixNode* last, int prompt_length);
  void SetQuota(BlockTable* table);
  int Own(int pool, const BlockTable& table) const;
  absl::Status CheckQuota(const BlockTable& table) const;
  absl::Status CheckTable(const BlockTable& table,
                          std::array<std::vector<int>, kBlockPools>* users) const;

  const int block_tokens_;
  const int64_t window_;
  std::array<KvPool, kBlockPools> pools_;
  PrefixTree tree_;
  std::array<std::vector<PrefixNode*>, kBlockPools> nodes_;  // of each block; null: not stored
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_BLOCK_MANAGER_H_
