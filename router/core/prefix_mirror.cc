#include "router/core/prefix_mirror.h"

namespace facet {

void PrefixMirror::Apply(const GroupCacheNews& news) {
  if (news.reset) {
    links_.clear();
    begun_ = true;
  }
  if (!begun_) return;
  // The lists are net per link: none is in both.
  for (const uint64_t link : news.evicted) links_.erase(link);
  for (const uint64_t link : news.stored) {
    if (links() >= links_max_) break;
    links_.insert(link);
  }
}

int PrefixMirror::Match(std::span<const uint64_t> links) const {
  if (links_.empty()) return 0;
  for (size_t count = links.size(); count > 0; --count) {
    if (links_.contains(links[count - 1])) return static_cast<int>(count);
  }
  return 0;
}

}  // namespace facet
