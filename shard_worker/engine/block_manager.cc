#include "shard_worker/engine/block_manager.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace facet {
namespace {

constexpr int kFull = 0;
constexpr int kWindow = 1;

}  // namespace

BlockManager::BlockManager(int block_tokens, std::array<int, kBlockPools> blocks, int64_t window)
    : block_tokens_(block_tokens), total_(blocks), window_(window) {
  FACET_CHECK(block_tokens > 0 && blocks[kFull] >= 0 && blocks[kWindow] >= 0);
  FACET_CHECK(blocks[kFull] + blocks[kWindow] > 0, "no pool has blocks");
  FACET_CHECK(blocks[kWindow] == 0 || window > 0, "a window pool of window {}", window);
  for (int pool = 0; pool < kBlockPools; ++pool) {
    for (int32_t id = blocks[pool] - 1; id >= 0; --id) free_[pool].push_back(id);
  }
}

int64_t BlockManager::Capacity(int64_t tokens) const {
  if (total_[kFull] > 0) tokens = std::min(tokens, int64_t{total_[kFull]} * block_tokens_);
  if (total_[kWindow] > 0 && total_[kWindow] < WindowBlocks()) {
    tokens = std::min(tokens, int64_t{total_[kWindow]} * block_tokens_);
  }
  return tokens;
}

int64_t BlockManager::Reach(const BlockTable& table, int64_t end) const {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (total_[pool] == 0) continue;
    const int64_t blocks = static_cast<int64_t>(table.blocks[pool].size()) + free(pool);
    end = std::min(end, blocks * block_tokens_);
  }
  return end;
}

void BlockManager::Grow(BlockTable* table, int64_t end) {
  FACET_CHECK(Reach(*table, end) == end, "cannot grow to {}", end);
  for (int pool = 0; pool < kBlockPools; ++pool) {
    if (total_[pool] == 0) continue;
    std::vector<int32_t>& blocks = table->blocks[pool];
    while (static_cast<int64_t>(blocks.size()) < BlocksFor(end)) {
      blocks.push_back(free_[pool].back());
      free_[pool].pop_back();
    }
  }
}

void BlockManager::Leave(BlockTable* table, int64_t next) {
  if (total_[kWindow] == 0) return;
  const int64_t first_read = next - window_ + 1;
  std::vector<int32_t>& blocks = table->blocks[kWindow];
  while (table->left_behind < static_cast<int>(blocks.size()) &&
         int64_t{table->left_behind + 1} * block_tokens_ <= first_read) {
    free_[kWindow].push_back(std::exchange(blocks[table->left_behind++], -1));
  }
}

void BlockManager::Release(BlockTable* table) {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    for (int32_t id : table->blocks[pool]) {
      if (id >= 0) free_[pool].push_back(id);
    }
  }
  *table = BlockTable();
}

int BlockManager::Lacking(int pool, const BlockTable& table, int64_t tokens) const {
  if (total_[pool] == 0) return 0;
  int64_t held = static_cast<int64_t>(table.blocks[pool].size());
  int64_t wanted = BlocksFor(tokens);
  if (pool == kWindow) {
    wanted = std::min(wanted, WindowBlocks());
    held -= table.left_behind;
  }
  return static_cast<int>(std::max<int64_t>(0, wanted - held));
}

}  // namespace facet
