#include "shard_worker/engine/cache_feed.h"

#include <utility>

#include "base/check.h"

namespace facet {

CacheFeed::CacheFeed(int links_max, std::span<const uint64_t> cached)
    : links_max_(static_cast<size_t>(links_max)) {
  FACET_CHECK(links_max > 0);
  for (const uint64_t link : cached) Note(link, true);
}

void CacheFeed::Add(const CacheNews& news) {
  for (const uint64_t link : news.stored) Note(link, true);
  for (const uint64_t link : news.evicted) Note(link, false);
}

void CacheFeed::Note(uint64_t link, bool stored) {
  const auto [place, is_new] = stored_.insert_or_assign(link, stored);
  if (is_new) order_.push_back(link);
}

CachePart CacheFeed::Take() {
  FACET_CHECK(!empty());
  CachePart part;
  part.reset = std::exchange(reset_, false);
  for (size_t left = links_max_; left > 0 && !order_.empty(); --left) {
    const auto link = stored_.extract(order_.front());
    order_.pop_front();
    (link.mapped() ? part.stored : part.evicted).push_back(link.key());
  }
  return part;
}

}  // namespace facet
