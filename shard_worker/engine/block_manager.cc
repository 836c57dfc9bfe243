#include "shard_worker/engine/block_manager.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"

namespace facet {
namespace {

constexpr int kFull = 0;
constexpr int kWindow = 1;

}  // namespace

BlockManager::BlockManager(int block_tokens, std::array<int, kBlockPools> blocks, int64_t window)
    : block_tokens_(block_tokens),
      window_(window),
      pools_{KvPool(blocks[kFull]), KvPool(blocks[kWindow])},
      tree_({blocks[kFull] > 0, blocks[kWindow] > 0}, block_tokens, window) {
  FACET_CHECK(block_tokens > 0 && blocks[kFull] >= 0 && blocks[kWindow] >= 0);
  FACET_CHECK(blocks[kFull] + blocks[kWindow] > 0, "no pool has blocks");
  FACET_CHECK(blocks[kWindow] == 0 || window > 0, "a window pool of window {}", window);
  for (int pool = 0; pool < kBlockPools; ++pool) {
    nodes_[pool].resize(static_cast<size_t>(blocks[pool]));
  }
}

int64_t BlockManager::Capacity(int64_t tokens) const {
  if (uses(kFull)) tokens = std::min(tokens, int64_t{pools_[kFull].total()} * block_tokens_);
  if (uses(kWindow) && pools_[kWindow].total() < WindowBlocks()) {
    tokens = std::min(tokens, int64_t{pools_[kWindow].total()} * block_tokens_);
  }
  return tokens;
}

int64_t BlockManager::FirstRead(int64_t next) const {
  return std::max<int64_t>(0, next - window_ + 1) / block_tokens_;
}

// --- Growing and shrinking.

// Positions that `pool` could hold of the table's sequence.
int64_t BlockManager::Limit(int pool, const BlockTable& table) const {
  if (!uses(pool)) return std::numeric_limits<int64_t>::max();
  return (static_cast<int64_t>(table.blocks[pool].size()) + table.quota[pool] +
          pools_[pool].available()) *
         block_tokens_;
}

int64_t BlockManager::Reach(const BlockTable& table, int64_t end) const {
  return std::min({end, Limit(kFull, table), Limit(kWindow, table)});
}

bool BlockManager::IsShort(int pool, const BlockTable& table, int64_t end) const {
  return Limit(pool, table) < end;
}

void BlockManager::Grow(BlockTable* table, int64_t end) {
  FACET_CHECK(Reach(*table, end) == end, "cannot grow to {}", end);
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (!uses(pool)) continue;
    std::vector<int32_t>& blocks = table->blocks[pool];
    while (static_cast<int64_t>(blocks.size()) < BlocksFor(end)) {
      if (table->quota[pool] > 0) {
        --table->quota[pool];
        pools_[pool].Reserve(-1);
      }
      blocks.push_back(Take(pool));
    }
  }
}

void BlockManager::Shrink(BlockTable* table, int64_t end) {
  FACET_CHECK(BlocksFor(end) >= std::max(table->stored, table->left_behind));
  for (int pool = 0; pool < kBlockPools; ++pool) {
    std::vector<int32_t>& blocks = table->blocks[pool];
    while (static_cast<int64_t>(blocks.size()) > BlocksFor(end)) {
      ReleaseBlock(pool, blocks.back());
      blocks.pop_back();
    }
  }
  SetQuota(table);
}

int32_t BlockManager::Take(int pool) {
  const int32_t id = pools_[pool].Take();
  PrefixNode* node = std::exchange(nodes_[pool][id], nullptr);
  if (node == nullptr) return id;
  // Without its block of pool 0 a prefix is worth nothing.
  if (const int32_t window = node->blocks[kWindow]; pool == kFull && window >= 0) {
    pools_[kWindow].Drop(window);
    nodes_[kWindow][window] = nullptr;
    tree_.SetBlock(node, kWindow, -1);
  }
  tree_.SetBlock(node, pool, -1);
  return id;
}

void BlockManager::ReleaseBlock(int pool, int32_t id) {
  pools_[pool].Release(id, nodes_[pool][id] != nullptr);
}

void BlockManager::Leave(BlockTable* table, int64_t next) {
  if (!uses(kWindow)) return;
  std::vector<int32_t>& blocks = table->blocks[kWindow];
  const int64_t end = std::min<int64_t>(FirstRead(next), static_cast<int64_t>(blocks.size()));
  while (table->left_behind < end) {
    ReleaseBlock(kWindow, std::exchange(blocks[table->left_behind++], -1));
  }
  SetQuota(table);
}

void BlockManager::Release(BlockTable* table) {
  Unsecure(table);
  for (int pool = 0; pool < kBlockPools; ++pool) {
    std::vector<int32_t>& blocks = table->blocks[pool];
    for (auto id = blocks.rbegin(); id != blocks.rend(); ++id) {
      if (*id >= 0) ReleaseBlock(pool, *id);
    }
  }
  if (table->tail != nullptr) tree_.Drop(table->tail);
  *table = BlockTable();
}

// --- Sharing.

bool BlockManager::AtBoundary(const BlockTable& table) const {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (uses(pool) && static_cast<int>(table.blocks[pool].size()) != table.stored) return false;
  }
  return !table.collided;
}

PrefixMatch BlockManager::Match(const BlockTable& table, const PrefixKey& key) const {
  PrefixMatch match;
  PrefixNode* node = table.tail;
  const auto most = (static_cast<int64_t>(key.tokens.size()) - 1) / block_tokens_;
  for (int i = table.stored; i < most; ++i) {
    const auto tokens = key.tokens.subspan(static_cast<size_t>(i) * block_tokens_, block_tokens_);
    node = tree_.Find(node, key.salt, key.links[i], tokens);
    if (node == nullptr) break;
    match.nodes.push_back(node);
    if (node->usable) match.blocks = i + 1;
  }
  match.nodes.resize(static_cast<size_t>(std::max(0, match.blocks - table.stored)));
  const int64_t first = FirstRead(int64_t{match.blocks} * block_tokens_);
  for (const PrefixNode* found : match.nodes) {
    match.cached[kFull] += uses(kFull) && pools_[kFull].is_cached(found->blocks[kFull]);
    match.cached[kWindow] +=
        uses(kWindow) && found->depth >= first && pools_[kWindow].is_cached(found->blocks[kWindow]);
  }
  return match;
}

bool BlockManager::HasRoomFor(const PrefixMatch& match) const {
  return match.cached[kFull] <= pools_[kFull].available() &&
         match.cached[kWindow] <= pools_[kWindow].available();
}

void BlockManager::Adopt(BlockTable* table, const PrefixMatch& match) {
  if (match.nodes.empty()) return;
  const int64_t first = FirstRead(int64_t{match.blocks} * block_tokens_);
  for (PrefixNode* node : match.nodes) {
    for (int pool = 0; pool < kBlockPools; ++pool) {
      if (!uses(pool)) continue;
      const bool wanted = pool == kFull || node->depth >= first;
      table->blocks[pool].push_back(wanted ? node->blocks[pool] : -1);
      if (wanted) pools_[pool].Reference(node->blocks[pool]);
      // Where prompts have parted once, they may again.
      if (wanted && pool == kWindow) pools_[pool].KeepLong(node->blocks[pool]);
    }
  }
  tree_.Hold(match.nodes.back());
  if (table->tail != nullptr) tree_.Drop(table->tail);
  table->tail = match.nodes.back();
  if (uses(kWindow)) {
    std::vector<int32_t>& blocks = table->blocks[kWindow];
    for (; table->left_behind < std::min<int64_t>(first, table->stored); ++table->left_behind) {
      ReleaseBlock(kWindow, std::exchange(blocks[table->left_behind], -1));
    }
    table->left_behind = static_cast<int>(first);
  }
  table->stored = match.blocks;
  SetQuota(table);
}

void BlockManager::Store(BlockTable* table, const PrefixKey& key, int64_t computed) {
  while (!table->collided && int64_t{table->stored + 1} * block_tokens_ <= computed) {
    const int i = table->stored;
    const auto tokens = key.tokens.subspan(static_cast<size_t>(i) * block_tokens_, block_tokens_);
    PrefixNode* node = tree_.FindOrInsert(table->tail, key.salt, key.links[i], tokens);
    if (node == nullptr) {
      table->collided = true;
      break;
    }
    tree_.Hold(node);
    for (int pool = 0; pool < kBlockPools; ++pool) {
      if (uses(pool)) Share(table, i, node, pool);
    }
    if (table->tail != nullptr) tree_.Drop(table->tail);
    table->tail = node;
    ++table->stored;
    if (table->stored == key.prompt_length / block_tokens_) KeepPromptEnd(node, key.prompt_length);
  }
}

// Makes block `index` of the table and the node's one: the node's, if it has one.
void BlockManager::Share(BlockTable* table, int index, PrefixNode* node, int pool) {
  // A secured sequence keeps its window to itself: it counts on the blocks that it leaves.
  if (pool == kWindow && table->secured_tokens > 0) return;
  int32_t& mine = table->blocks[pool][index];
  const int32_t theirs = node->blocks[pool];
  if (theirs < 0) {
    nodes_[pool][mine] = node;
    tree_.SetBlock(node, pool, mine);
  } else if (theirs != mine) {
    ReleaseBlock(pool, mine);
    pools_[pool].Reference(theirs);
    mine = theirs;
  }
}

// The window before the last whole block of a prompt, and before its end: where the same prompt,
// and one that goes on from it, find their way in.
void BlockManager::KeepPromptEnd(PrefixNode* last, int prompt_length) {
  if (!uses(kWindow)) return;
  const int64_t first = FirstRead(int64_t{(prompt_length - 1) / block_tokens_} * block_tokens_);
  for (PrefixNode* node = last; node != nullptr && node->depth >= first; node = node->parent) {
    if (node->blocks[kWindow] >= 0) pools_[kWindow].KeepLong(node->blocks[kWindow]);
  }
}

// --- Room.

// Blocks needed for positions up to `tokens` beyond the first `covered` blocks, by a sequence that
// holds `held` blocks of the window pool and gets them back as the window moves on.
int64_t BlockManager::Beyond(int pool, int64_t covered, int64_t tokens, int64_t held) const {
  int64_t wanted = BlocksFor(tokens) - covered;
  if (pool == kWindow) wanted = std::min(wanted, WindowBlocks() - held);
  return std::max<int64_t>(0, wanted);
}

int BlockManager::Lacking(int pool, const BlockTable& table, int64_t tokens, int expected) const {
  if (!uses(pool)) return 0;
  const auto size = static_cast<int64_t>(table.blocks[pool].size());
  const int64_t held = pool == kWindow ? size - table.left_behind : size;
  const int64_t beyond = Beyond(pool, std::max<int64_t>(size, expected), tokens, held);
  return static_cast<int>(std::max<int64_t>(0, beyond - table.quota[pool]));
}

int BlockManager::Cost(int pool, const PrefixMatch& match, int64_t tokens, int expected) const {
  if (!uses(pool)) return 0;
  int64_t cost = match.cached[pool] + Beyond(pool, std::max(match.blocks, expected), tokens, 0);
  // A window needs no more at a time, whoever computed its blocks.
  if (pool == kWindow) cost = std::min(cost, WindowBlocks());
  return static_cast<int>(cost);
}

int BlockManager::SecureCost(int pool, const PrefixMatch& match, int64_t tokens) const {
  if (!uses(pool)) return 0;
  return static_cast<int>(match.cached[pool] + Beyond(pool, match.blocks, tokens, 0));
}

void BlockManager::Secure(BlockTable* table, int64_t tokens) {
  FACET_CHECK(tokens > 0 && table->secured_tokens == 0);
  table->secured_tokens = tokens;
  SetQuota(table);
}

void BlockManager::Unsecure(BlockTable* table) {
  table->secured_tokens = 0;
  SetQuota(table);
}

// What a secured table may still need at one time: in pool 1, a window's blocks less those that
// nobody shares and that therefore come back. Shared ones may not come back.
void BlockManager::SetQuota(BlockTable* table) {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    int quota = 0;
    if (table->secured_tokens > 0 && uses(pool)) {
      const auto size = static_cast<int64_t>(table->blocks[pool].size());
      quota = static_cast<int>(Beyond(pool, size, table->secured_tokens, Own(pool, *table)));
    }
    const int change = quota - std::exchange(table->quota[pool], quota);
    if (change != 0) pools_[pool].Reserve(change);
  }
}

// Blocks that are the table's alone and will stay so while it is secured.
int BlockManager::Own(int pool, const BlockTable& table) const {
  int own = 0;
  const std::vector<int32_t>& blocks = table.blocks[pool];
  for (size_t i = pool == kWindow ? static_cast<size_t>(table.left_behind) : 0; i < blocks.size();
       ++i) {
    own += nodes_[pool][blocks[i]] == nullptr;
  }
  return own;
}

// --- What a preemption would cost and give.

int64_t BlockManager::OnlyHere(const BlockTable& table, int64_t computed) const {
  int64_t shared = 0;
  if (uses(kFull)) {
    // Whoever holds a block holds all before it.
    const std::vector<int32_t>& blocks = table.blocks[kFull];
    shared = std::partition_point(blocks.begin(), blocks.end(),
                                  [this](int32_t id) { return pools_[kFull].references(id) > 1; }) -
             blocks.begin();
  } else if (!Frees(kWindow, table)) {
    shared = static_cast<int64_t>(table.blocks[kWindow].size());
  }
  return std::max<int64_t>(0, computed - shared * block_tokens_);
}

bool BlockManager::Frees(int pool, const BlockTable& table) const {
  const auto& blocks = table.blocks[pool];
  return table.quota[pool] > 0 || std::any_of(blocks.begin(), blocks.end(), [&](int32_t id) {
           return id >= 0 && pools_[pool].references(id) == 1;
         });
}

bool BlockManager::Holds(int pool, const BlockTable& table, const BlockTable& other) const {
  const std::vector<int32_t>& mine = table.blocks[pool];
  const std::vector<int32_t>& theirs = other.blocks[pool];
  for (size_t i = 0; i < mine.size(); ++i) {
    if (mine[i] >= 0 && (i >= theirs.size() || mine[i] != theirs[i])) return true;
  }
  return false;
}

}  // namespace facet
