#ifndef FACET_ROUTER_CORE_PREFIX_MIRROR_H_
#define FACET_ROUTER_CORE_PREFIX_MIRROR_H_

// Which prefixes a group could reuse, as far as its leader has told: a mirror of the links
// (base/prefix_hash.h) in its cache. It may lag; whoever trusts it chooses a slower group at worst.
// Not thread-safe; the group table owns one per group.

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_set.h"

namespace facet {

// What the group's prefix cache gained and lost.
struct GroupCacheNews {
  bool reset = false;  // `stored` is everything there is
  std::vector<uint64_t> stored;
  std::vector<uint64_t> evicted;
};

class PrefixMirror {
 public:
  // Links beyond `links_max` are not remembered, until others are evicted.
  explicit PrefixMirror(int64_t links_max) : links_max_(links_max) {}

  // News before the first reset are those of an earlier session, or incomplete: ignored.
  void Apply(const GroupCacheNews& news);
  // How many of a prompt's links the longest prefix has that can be reused. `links` is its chain,
  // first to last; a link may be missing where a longer prefix is there.
  int Match(std::span<const uint64_t> links) const;

  int64_t links() const { return static_cast<int64_t>(links_.size()); }
  int64_t links_max() const { return links_max_; }

 private:
  int64_t links_max_;
  bool begun_ = false;
  absl::flat_hash_set<uint64_t> links_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_PREFIX_MIRROR_H_
