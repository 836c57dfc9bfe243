#ifndef FACET_SHARD_WORKER_ENGINE_PREFIX_TREE_H_
#define FACET_SHARD_WORKER_ENGINE_PREFIX_TREE_H_

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

// A prefix of whole blocks: the tokens of its last block, after those of its parent. Only
// PrefixTree changes nodes.
struct PrefixNode {
  PrefixNode* parent = nullptr;  // null: this is the first block
  uint64_t salt = 0;
  uint64_t link = 0;
  int depth = 0;  // blocks before this one
  std::vector<TokenId> tokens;
  // The block of each pool that holds this block's keys, or -1.
  std::array<int32_t, kBlockPools> blocks = {-1, -1};
  int missing = 0;      // blocks that a window right after this prefix needs and pool 1 lacks
  bool usable = false;  // a sequence could go on after this prefix, as far as its own blocks tell
  int users = 0;        // that hold on to the node
  std::vector<PrefixNode*> children;
  size_t index = 0;  // in the parent's children
};

// Which prefixes have their keys in the pools. A node is named by its link (base/prefix_hash.h)
// and lives while it has a block, a child or a user. Two prefixes with the same link cannot both
// be in the tree; tokens and salts are compared, so they are never confused.
// Not thread-safe.
class PrefixTree {
 public:
  // uses[pool]: some layer uses the pool. A window sees `window` tokens.
  PrefixTree(std::array<bool, kBlockPools> uses, int block_tokens, int64_t window);
  ~PrefixTree();

  // The child of `parent` (null: a first block) with these tokens, or null if there is none.
  PrefixNode* Find(PrefixNode* parent, uint64_t salt, uint64_t link,
                   std::span<const TokenId> tokens) const;
  // The same, made if it is absent; null if another prefix has the link. The caller gives the node
  // a block or a user.
  PrefixNode* FindOrInsert(PrefixNode* parent, uint64_t salt, uint64_t link,
                           std::span<const TokenId> tokens);
  // Where the node's keys are; -1: no longer. The node may die of it.
  void SetBlock(PrefixNode* node, int pool, int32_t id);
  void Hold(PrefixNode* node) { ++node->users; }
  // The node may die of it.
  void Drop(PrefixNode* node);

  // Links that became usable or unusable since the last call.
  CacheNews TakeNews();
  // All usable links, shorter prefixes first.
  std::vector<uint64_t> Links() const;

  // Internal, with a sentence, if a node is wrong.
  absl::Status Check() const;

 private:
  struct Change {
    bool stored;
    uint64_t order;
  };

  int Missing(const PrefixNode& node) const;
  void AddMissing(PrefixNode* node, int change, int levels);
  void Refresh(PrefixNode* node);
  void Tell(uint64_t link, bool stored);
  void RemoveDead(PrefixNode* node);

  const std::array<bool, kBlockPools> uses_;
  const int window_blocks_;  // whole blocks before a block's start that its first token can see
  std::unordered_map<uint64_t, std::unique_ptr<PrefixNode>> nodes_;  // by link
  // Net per link: what was stored and evicted since TakeNews() is not in it.
  std::unordered_map<uint64_t, Change> changes_;
  uint64_t changes_made_ = 0;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_PREFIX_TREE_H_
