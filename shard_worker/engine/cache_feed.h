#ifndef FACET_SHARD_WORKER_ENGINE_CACHE_FEED_H_
#define FACET_SHARD_WORKER_ENGINE_CACHE_FEED_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <unordered_map>
#include <vector>

#include "shard_worker/engine/engine.h"

namespace facet {

// One message's worth of news about the prefix cache. A link is in one of the lists at most.
struct CachePart {
  bool reset = false;  // forget all before
  std::vector<uint64_t> stored, evicted;
};

// What one router has yet to hear about the prefix cache: first all that is in it, then what
// changes, in messages of bounded size. What changes twice before it is told is told once.
class CacheFeed {
 public:
  // links_max: of one message.
  CacheFeed(int links_max, std::span<const uint64_t> cached);

  void Add(const CacheNews& news);
  // The next message; REQUIRES: !empty().
  CachePart Take();

  bool empty() const { return !reset_ && order_.empty(); }
  // A whole message waits.
  bool full() const { return order_.size() >= links_max_; }

 private:
  void Note(uint64_t link, bool stored);

  const size_t links_max_;
  bool reset_ = true;
  std::deque<uint64_t> order_;                 // of the first change since it was told
  std::unordered_map<uint64_t, bool> stored_;  // the last change; never iterated
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_CACHE_FEED_H_
