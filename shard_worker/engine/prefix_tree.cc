#include "shard_worker/engine/prefix_tree.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr int kFull = 0;
constexpr int kWindow = 1;

}  // namespace

PrefixTree::PrefixTree(std::array<bool, kBlockPools> uses, int block_tokens, int64_t window)
    : uses_(uses),
      window_blocks_(
          uses[kWindow] ? static_cast<int>((window - 1 + block_tokens - 1) / block_tokens) : 0) {}
PrefixTree::~PrefixTree() = default;

PrefixNode* PrefixTree::Find(PrefixNode* parent, uint64_t salt, uint64_t link,
                             std::span<const TokenId> tokens) const {
  const auto found = nodes_.find(link);
  if (found == nodes_.end()) return nullptr;
  PrefixNode* node = found->second.get();
  const bool same =
      node->parent == parent && node->salt == salt &&
      std::equal(tokens.begin(), tokens.end(), node->tokens.begin(), node->tokens.end());
  return same ? node : nullptr;
}

PrefixNode* PrefixTree::FindOrInsert(PrefixNode* parent, uint64_t salt, uint64_t link,
                                     std::span<const TokenId> tokens) {
  if (PrefixNode* found = Find(parent, salt, link, tokens)) return found;
  auto owned = std::make_unique<PrefixNode>();
  PrefixNode* node = owned.get();
  if (!nodes_.try_emplace(link, std::move(owned)).second) return nullptr;
  node->parent = parent;
  node->salt = salt;
  node->link = link;
  node->tokens.assign(tokens.begin(), tokens.end());
  if (parent != nullptr) {
    node->depth = parent->depth + 1;
    node->index = parent->children.size();
    parent->children.push_back(node);
  }
  node->missing = Missing(*node);
  return node;
}

void PrefixTree::SetBlock(PrefixNode* node, int pool, int32_t id) {
  const bool had = std::exchange(node->blocks[pool], id) >= 0;
  const bool has = id >= 0;
  if (pool == kWindow && had != has) AddMissing(node, has ? -1 : 1, window_blocks_);
  Refresh(node);
  if (!has) RemoveDead(node);
}

void PrefixTree::Drop(PrefixNode* node) {
  --node->users;
  RemoveDead(node);
}

int PrefixTree::Missing(const PrefixNode& node) const {
  int missing = 0;
  const PrefixNode* seen = &node;
  for (int i = 0; i < window_blocks_ && seen != nullptr; ++i, seen = seen->parent) {
    missing += seen->blocks[kWindow] < 0;
  }
  return missing;
}

void PrefixTree::AddMissing(PrefixNode* node, int change, int levels) {
  if (levels == 0) return;
  node->missing += change;
  Refresh(node);
  for (PrefixNode* child : node->children) AddMissing(child, change, levels - 1);
}

void PrefixTree::Refresh(PrefixNode* node) {
  const bool usable = node->missing == 0 && (!uses_[kFull] || node->blocks[kFull] >= 0);
  if (std::exchange(node->usable, usable) != usable) Tell(node->link, usable);
}

void PrefixTree::Tell(uint64_t link, bool stored) {
  const auto [change, fresh] = changes_.try_emplace(link, Change{stored, changes_made_++});
  if (!fresh && change->second.stored != stored) changes_.erase(change);
}

void PrefixTree::RemoveDead(PrefixNode* node) {
  while (node != nullptr && node->children.empty() && node->users == 0 && node->blocks[kFull] < 0 &&
         node->blocks[kWindow] < 0) {
    if (node->usable) Tell(node->link, false);
    PrefixNode* parent = node->parent;
    if (parent != nullptr) {
      PrefixNode* last = parent->children.back();
      parent->children[node->index] = last;
      last->index = node->index;
      parent->children.pop_back();
    }
    nodes_.erase(node->link);
    node = parent;
  }
}

CacheNews PrefixTree::TakeNews() {
  std::vector<std::pair<uint64_t, Change>> changes(changes_.begin(), changes_.end());
  changes_.clear();
  std::sort(changes.begin(), changes.end(),
            [](const auto& a, const auto& b) { return a.second.order < b.second.order; });
  CacheNews news;
  for (const auto& [link, change] : changes) {
    (change.stored ? news.stored : news.evicted).push_back(link);
  }
  return news;
}

std::vector<uint64_t> PrefixTree::Links() const {
  std::vector<std::pair<int, uint64_t>> found;
  for (const auto& [link, node] : nodes_) {
    if (node->usable) found.emplace_back(node->depth, link);
  }
  std::sort(found.begin(), found.end());
  std::vector<uint64_t> links;
  for (const auto& [depth, link] : found) links.push_back(link);
  return links;
}

absl::Status PrefixTree::Check() const {
  for (const auto& [link, node] : nodes_) {
    if (node->link != link) return Internal("prefix {:x} is filed under {:x}", node->link, link);
    if (node->missing != Missing(*node)) {
      return Internal("prefix {:x} counts {} missing window blocks of {}", link, node->missing,
                      Missing(*node));
    }
    if (uses_[kFull] && node->blocks[kFull] < 0) {
      return Internal("prefix {:x} outlives its block of the full pool", link);
    }
    if (node->parent != nullptr && node->parent->children.at(node->index) != node.get()) {
      return Internal("prefix {:x} is not its parent's child", link);
    }
    if (node->children.empty() && node->users == 0 && node->blocks[kFull] < 0 &&
        node->blocks[kWindow] < 0) {
      return Internal("prefix {:x} is dead", link);
    }
  }
  return absl::OkStatus();
}

}  // namespace facet
