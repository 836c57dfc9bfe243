#include "base/status.h"
#include "shard_worker/engine/block_manager.h"

namespace facet {
namespace {

constexpr int kFull = 0;
constexpr int kWindow = 1;

}  // namespace

absl::Status BlockManager::CheckTable(const BlockTable& table,
                                      std::array<std::vector<int>, kBlockPools>* users) const {
  const PrefixNode* node = table.tail;
  if ((node == nullptr ? 0 : node->depth + 1) != table.stored) {
    return Internal("a table has stored {} blocks, its tail says otherwise", table.stored);
  }
  for (int i = table.stored - 1; i >= 0; --i, node = node->parent) {
    if (uses(kFull) && table.blocks[kFull][i] != node->blocks[kFull]) {
      return Internal("entry {} of a table is block {}, its prefix has block {}", i,
                      table.blocks[kFull][i], node->blocks[kFull]);
    }
  }
  for (int pool = 0; pool < kBlockPools; ++pool) {
    const auto size = static_cast<int>(table.blocks[pool].size());
    const int left = pool == kWindow ? table.left_behind : 0;
    for (int i = 0; i < size; ++i) {
      const int32_t id = table.blocks[pool][i];
      if ((id < 0) != (i < left)) return Internal("entry {} of a table is {}", i, id);
      if (id < 0) continue;
      ++(*users)[pool][id];
      const PrefixNode* held = nodes_[pool][id];
      if (held != nullptr && (held->depth != i || i >= table.stored)) {
        return Internal("entry {} of a table is block {}, which is stored as another prefix", i,
                        id);
      }
    }
  }
  return absl::OkStatus();
}

// A secured table can always get what it may still need.
absl::Status BlockManager::CheckQuota(const BlockTable& table) const {
  for (int pool = 0; pool < kBlockPools; ++pool) {
    const auto size = static_cast<int64_t>(table.blocks[pool].size());
    const int64_t needed = table.secured_tokens > 0 && uses(pool)
                               ? Beyond(pool, size, table.secured_tokens, Own(pool, table))
                               : 0;
    if (table.quota[pool] != needed) {
      return Internal("pool {}: a table has {} blocks reserved and needs {}", pool,
                      table.quota[pool], needed);
    }
  }
  return absl::OkStatus();
}

absl::Status BlockManager::Check(std::span<const BlockTable* const> tables) const {
  FACET_RETURN_IF_ERROR(tree_.Check());
  std::array<std::vector<int>, kBlockPools> users;
  std::array<int, kBlockPools> quota = {0, 0};
  for (int pool = 0; pool < kBlockPools; ++pool) {
    users[pool].resize(static_cast<size_t>(pools_[pool].total()));
  }
  for (const BlockTable* table : tables) {
    FACET_RETURN_IF_ERROR(CheckTable(*table, &users));
    FACET_RETURN_IF_ERROR(CheckQuota(*table));
    for (int pool = 0; pool < kBlockPools; ++pool) quota[pool] += table->quota[pool];
  }
  for (int pool = 0; pool < kBlockPools; ++pool) {
    FACET_RETURN_IF_ERROR(pools_[pool].Check());
    if (pools_[pool].reserved() != quota[pool]) {
      return Internal("pool {}: {} blocks are reserved, sequences count on {}", pool,
                      pools_[pool].reserved(), quota[pool]);
    }
    for (int32_t id = 0; id < pools_[pool].total(); ++id) {
      const PrefixNode* node = nodes_[pool][id];
      const int references = pools_[pool].references(id);
      if (references != users[pool][id]) {
        return Internal("pool {}: block {} has {} references and {} users", pool, id, references,
                        users[pool][id]);
      }
      if (node == nullptr && references > 1) {
        return Internal("pool {}: block {} may be written and has {} owners", pool, id, references);
      }
      if (node != nullptr && node->blocks[pool] != id) {
        return Internal("pool {}: block {} is not its prefix's", pool, id);
      }
      if (pools_[pool].is_cached(id) && node == nullptr) {
        return Internal("pool {}: block {} is cached for no prefix", pool, id);
      }
      if (node != nullptr && references == 0 && !pools_[pool].is_cached(id)) {
        return Internal("pool {}: block {} is free and has a prefix", pool, id);
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace facet
