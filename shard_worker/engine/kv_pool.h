#ifndef FACET_SHARD_WORKER_ENGINE_KV_POOL_H_
#define FACET_SHARD_WORKER_ENGINE_KV_POOL_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"

namespace facet {

// The ids of one pool's KV blocks. A block is free, or referenced by sequences, or cached: nobody
// references it, but its keys may be reused until the block is taken for others.
// Some of the blocks that could be taken may be reserved, by number, for sequences that must not
// run out of them; whoever takes for such a sequence gives the reservation back first.
// Owns no memory: the ranks have the bytes behind each id. Not thread-safe.
class KvPool {
 public:
  explicit KvPool(int blocks);

  // A block for new keys, with one reference: a free one, or else the cached one whose last use is
  // longest ago, of those that are not kept long if there are any. REQUIRES: free() + cached() > 0.
  int32_t Take();
  // One more reference to a block that is cached or referenced.
  void Reference(int32_t id);
  // One reference less. The last one leaves the block cached if `keep`, else free.
  void Release(int32_t id, bool keep);
  // From now until it is free or taken, the block is evicted after those that are not kept long.
  void KeepLong(int32_t id);
  // Frees a cached block.
  void Drop(int32_t id);

  // Changes the number of reserved blocks. REQUIRES: they are there.
  void Reserve(int change);

  int references(int32_t id) const { return blocks_[id].references; }
  bool is_cached(int32_t id) const { return blocks_[id].cached; }
  int total() const { return static_cast<int>(blocks_.size()); }
  int free() const { return static_cast<int>(free_.size()); }
  int cached() const { return lists_[0].size + lists_[1].size; }
  int referenced() const { return total() - free() - cached(); }
  int reserved() const { return reserved_; }
  // What may be taken without a reservation.
  int available() const { return free() + cached() - reserved_; }

  // Internal, with a sentence, if a count or a list is wrong.
  absl::Status Check() const;

 private:
  struct Block {
    int references = 0;
    bool cached = false;
    bool kept_long = false;
    int32_t older = -1, newer = -1;  // neighbours in its list, while cached
  };
  // Cached blocks in the order of their last use.
  struct List {
    int32_t oldest = -1, newest = -1;
    int size = 0;
  };

  List& ListOf(const Block& block) { return lists_[block.kept_long ? 1 : 0]; }
  void Append(int32_t id);
  void Unlink(int32_t id);

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;  // a stack
  std::array<List, 2> lists_;  // [1]: those kept long
  int reserved_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_KV_POOL_H_
