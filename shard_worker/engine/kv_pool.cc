#include "shard_worker/engine/kv_pool.h"

#include "base/check.h"
#include "base/status.h"

namespace facet {

KvPool::KvPool(int blocks) : blocks_(static_cast<size_t>(blocks)) {
  for (int32_t id = blocks - 1; id >= 0; --id) free_.push_back(id);
}

int32_t KvPool::Take() {
  int32_t id;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else {
    const List& list = lists_[lists_[0].size > 0 ? 0 : 1];
    FACET_CHECK(list.size > 0, "no block is free or cached");
    id = list.oldest;
    Unlink(id);
  }
  blocks_[id] = Block();
  blocks_[id].references = 1;
  return id;
}

void KvPool::Reference(int32_t id) {
  Block& block = blocks_[id];
  FACET_CHECK(block.cached || block.references > 0, "block {} is free", id);
  if (block.cached) Unlink(id);
  ++block.references;
}

void KvPool::Release(int32_t id, bool keep) {
  Block& block = blocks_[id];
  FACET_CHECK(block.references > 0, "block {} is not referenced", id);
  if (--block.references > 0) return;
  if (keep) {
    Append(id);
  } else {
    block = Block();
    free_.push_back(id);
  }
}

void KvPool::KeepLong(int32_t id) {
  Block& block = blocks_[id];
  const bool cached = block.cached;
  if (cached) Unlink(id);
  block.kept_long = true;
  if (cached) Append(id);
}

void KvPool::Drop(int32_t id) {
  FACET_CHECK(blocks_[id].cached, "block {} is not cached", id);
  Unlink(id);
  blocks_[id] = Block();
  free_.push_back(id);
}

void KvPool::Reserve(int change) {
  reserved_ += change;
  FACET_CHECK(reserved_ >= 0 && available() >= 0, "{} blocks reserved of {} free and {} cached",
              reserved_, free(), cached());
}

void KvPool::Append(int32_t id) {
  Block& block = blocks_[id];
  List& list = ListOf(block);
  block.cached = true;
  block.older = list.newest;
  block.newer = -1;
  (list.newest >= 0 ? blocks_[list.newest].newer : list.oldest) = id;
  list.newest = id;
  ++list.size;
}

void KvPool::Unlink(int32_t id) {
  Block& block = blocks_[id];
  List& list = ListOf(block);
  (block.older >= 0 ? blocks_[block.older].newer : list.oldest) = block.newer;
  (block.newer >= 0 ? blocks_[block.newer].older : list.newest) = block.older;
  block.cached = false;
  --list.size;
}

absl::Status KvPool::Check() const {
  std::vector<int> seen(blocks_.size());
  for (const int32_t id : free_) {
    ++seen[id];
    if (blocks_[id].references > 0 || blocks_[id].cached)
      return Internal("block {} is free and not", id);
  }
  for (const List& list : lists_) {
    for (int32_t id = list.oldest; id >= 0; id = blocks_[id].newer) {
      ++seen[id];
      if (blocks_[id].references > 0 || !blocks_[id].cached) {
        return Internal("block {} is cached and not", id);
      }
    }
  }
  int referenced = 0;
  for (int32_t id = 0; id < total(); ++id) {
    if (blocks_[id].references > 0) {
      ++referenced;
    } else if (seen[id] != 1) {
      return Internal("block {} is lost: nobody references it, {} lists have it", id, seen[id]);
    }
  }
  if (free() + cached() + referenced != total()) {
    return Internal("{} blocks free + {} cached + {} referenced are not {}", free(), cached(),
                    referenced, total());
  }
  if (available() < 0) return Internal("{} blocks are reserved and not there", reserved_);
  return absl::OkStatus();
}

}  // namespace facet
