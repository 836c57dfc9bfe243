#include "router/core/placement.h"

#include <algorithm>
#include <tuple>

#include "base/prng.h"

namespace facet {

std::optional<PlacementChoice> Placement::Choose(const PlacementWish& wish) {
  Collect(wish);
  if (candidates_.empty()) return std::nullopt;
  if (candidates_.size() > 1) KeepLongestPrefix();
  const Candidate& best = Best();
  return PlacementChoice{best.group, best.cached_tokens};
}

void Placement::Collect(const PlacementWish& wish) {
  candidates_.clear();
  bool avoided = false;
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    const GroupId group{i};
    if (!groups_.Takes(group, wish.tokens, wish.fingerprint)) continue;
    if (group == wish.avoid) {
      avoided = true;
      continue;
    }
    candidates_.push_back(Assess(group, wish));
  }
  if (candidates_.empty() && avoided) candidates_.push_back(Assess(*wish.avoid, wish));
}

Placement::Candidate Placement::Assess(GroupId group, const PlacementWish& wish) const {
  Candidate candidate{.group = group, .load = groups_.load(group)};
  const PrefixMirror& mirror = groups_.mirror(group);
  const int block_tokens = groups_.block_tokens(group);
  if (mirror.links() > 0 && block_tokens > 0) {
    const int64_t cached = int64_t{mirror.Match(wish.links(block_tokens))} * block_tokens;
    candidate.cached_tokens = std::min(cached, wish.tokens - 1);  // the last one is always computed
  }
  const double known_rate = groups_.prefill_tokens_per_s(group);
  const double rate = known_rate > 0 ? known_rate : options_.prefill_tokens_per_s;
  const auto time = [rate](int64_t tokens) {
    return static_cast<TimeUs>(static_cast<double>(tokens) * 1e6 / rate);
  };
  candidate.saved = time(candidate.cached_tokens);
  candidate.ttft =
      time(groups_.pending_prompt_tokens(group) + wish.tokens - candidate.cached_tokens);
  return candidate;
}

void Placement::KeepLongestPrefix() {
  int64_t least_load = candidates_.front().load;
  TimeUs least_ttft = candidates_.front().ttft;
  for (const Candidate& candidate : candidates_) {
    least_load = std::min(least_load, candidate.load);
    least_ttft = std::min(least_ttft, candidate.ttft);
  }
  const auto counts = [&](const Candidate& candidate) {
    const bool crowded = candidate.load > least_load + options_.prefix_skew_max + least_load / 4;
    const bool late = candidate.ttft > least_ttft + options_.prefix_patience_us;
    return !crowded && !late;
  };
  int64_t longest = 0;
  for (Candidate& candidate : candidates_) {
    if (counts(candidate)) {
      longest = std::max(longest, candidate.cached_tokens);
    } else {
      candidate.ttft += candidate.saved;
    }
  }
  if (longest == 0) return;
  std::erase_if(candidates_, [&](const Candidate& candidate) {
    return candidate.cached_tokens < longest || !counts(candidate);
  });
}

const Placement::Candidate& Placement::Best() {
  const auto rank = [this](const Candidate& candidate) {
    return std::tuple(candidate.ttft / options_.ttft_resolution_us, candidate.load,
                      candidate.group);
  };
  const auto better = [&](const Candidate& a, const Candidate& b) { return rank(a) < rank(b); };
  const auto count = candidates_.size();
  if (count < static_cast<size_t>(options_.draw_from) || count < 2) {
    return *std::min_element(candidates_.begin(), candidates_.end(), better);
  }
  const uint64_t draw = Mix64(seed_, ++draws_);
  const size_t first = (draw >> 32) % count;
  size_t second = (draw & 0xffffffff) % (count - 1);
  second += second >= first;
  return std::min(candidates_[first], candidates_[second], better);
}

}  // namespace facet
