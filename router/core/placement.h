#ifndef FACET_ROUTER_CORE_PLACEMENT_H_
#define FACET_ROUTER_CORE_PLACEMENT_H_

// Which group a sequence goes to.
//
// Candidates are the groups that take requests, have credit, fit the sequence and, where it has
// tokens, have its fingerprint. The longest cached prefix wins; among equals the shortest predicted
// time to the first token (the group's prompt tokens that are not computed yet and the sequence's
// own that are not cached, by the group's prefill rate); then the fewest sequences.
//
// A prefix that everybody wants must not pin everybody to one group. A group's prefix counts for
// nothing while the group has many more sequences than the least loaded candidate, or while its
// first token would come much later than another's: then the sequence goes elsewhere, computes the
// prefix there, and from then on two groups have it.
//
// Among many equal candidates two are drawn and the better one is taken (Mitzenmacher, "The Power
// of Two Choices in Randomized Load Balancing", 2001): several routers with the same stale news
// would all run to the same best group. Draws are a function of the seed and their number.
// Not thread-safe; the router core owns it.

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/ids.h"
#include "router/core/group_table.h"
#include "router/core/request.h"

namespace facet {

struct PlacementOptions {
  // How many more sequences than the least loaded candidate, and a quarter of that one's, a group
  // may have for its prefix to count.
  int64_t prefix_skew_max = 8;
  // How much later the first token may come for the prefix' sake.
  TimeUs prefix_patience_us = 1'000'000;
  // Times that differ by less are equal.
  TimeUs ttft_resolution_us = 10'000;
  double prefill_tokens_per_s = 1000;  // assumed of a group that has not said
  int draw_from = 5;                   // equal candidates from which on two are drawn
};

struct PlacementWish {
  int64_t tokens = 0;  // known ones, to be computed where they are not cached
  std::optional<std::string_view> fingerprint;
  std::optional<GroupId> avoid;  // only if there is no other
  // The prompt's prefix links in blocks of so many tokens.
  absl::FunctionRef<std::span<const uint64_t>(int block_tokens)> links;
};

struct PlacementChoice {
  GroupId group;
  int64_t cached_tokens = 0;  // that the group probably need not compute
};

class Placement {
 public:
  // `groups` must outlive it.
  Placement(const PlacementOptions& options, const GroupTable& groups, uint64_t seed)
      : options_(options), groups_(groups), seed_(seed) {}

  std::optional<PlacementChoice> Choose(const PlacementWish& wish);

 private:
  struct Candidate {
    GroupId group;
    int64_t load = 0;           // sequences
    int64_t cached_tokens = 0;  // of the sequence
    TimeUs ttft = 0;
    TimeUs saved = 0;  // of ttft, by what is cached
  };
  void Collect(const PlacementWish& wish);
  Candidate Assess(GroupId group, const PlacementWish& wish) const;
  // Leaves those whose prefix is the longest that counts.
  void KeepLongestPrefix();
  const Candidate& Best();

  PlacementOptions options_;
  const GroupTable& groups_;
  std::vector<Candidate> candidates_;  // of the choice being made
  uint64_t seed_;
  uint64_t draws_ = 0;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_PLACEMENT_H_
