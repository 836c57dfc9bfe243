#include "router/core/group_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {

GroupId GroupTable::Add() {
  groups_.emplace_back();
  return GroupId{static_cast<uint32_t>(groups_.size() - 1)};
}

GroupTable::Group& GroupTable::At(GroupId id) {
  FACET_CHECK(id.value < groups_.size());
  return groups_[id.value];
}

const GroupTable::Group& GroupTable::At(GroupId id) const {
  FACET_CHECK(id.value < groups_.size());
  return groups_[id.value];
}

void GroupTable::Up(GroupId id, GroupFacts facts) {
  Group& group = At(id);
  FACET_CHECK(!group.up, "group {} is up already", id.value);
  if (group.last_epoch && *group.last_epoch != facts.epoch) ++epoch_changes_;
  const uint64_t epoch = facts.epoch;
  group = Group{.up = true, .facts = std::move(facts), .mirror = PrefixMirror(mirror_links_max_)};
  group.last_epoch = epoch;
  none_since_ = kNever;
}

void GroupTable::State(GroupId id, const GroupState& state, TimeUs now) {
  Group& group = At(id);
  FACET_CHECK(group.up);
  group.state = state;
  group.others = std::max<int64_t>(0, state.running + state.waiting - group.own);
  const int64_t received = std::min(state.submits_received.value_or(group.submits), group.submits);
  while (group.submits - static_cast<int64_t>(group.unseen.size()) < received) {
    group.unseen_tokens -= group.unseen.front();
    group.unseen.pop_front();
  }
  NoteAvailability(now);
}

void GroupTable::CacheNews(GroupId id, const GroupCacheNews& news) {
  Group& group = At(id);
  if (group.up) group.mirror.Apply(news);
}

void GroupTable::Down(GroupId id, TimeUs now) {
  Group& group = At(id);
  if (!group.up) return;
  group = Group{.last_epoch = group.last_epoch};
  NoteAvailability(now);
}

void GroupTable::NoteAvailability(TimeUs now) {
  const bool any = std::any_of(groups_.begin(), groups_.end(),
                               [](const Group& group) { return group.takes_requests(); });
  if (any) {
    none_since_ = kNever;
  } else if (none_since_ == kNever) {
    none_since_ = now;
  }
}

void GroupTable::Start(GroupId id, int64_t tokens) {
  Group& group = At(id);
  ++group.own;
  ++group.submits;
  group.unseen.push_back(tokens);
  group.unseen_tokens += tokens;
}

void GroupTable::End(GroupId id) {
  Group& group = At(id);
  FACET_CHECK(group.up && group.own > 0);
  --group.own;
}

bool GroupTable::Suits(GroupId id, int64_t tokens,
                       std::optional<std::string_view> fingerprint) const {
  const Group& group = At(id);
  return group.takes_requests() && tokens < group.facts.context_tokens &&
         (!fingerprint || *fingerprint == group.facts.fingerprint);
}

bool GroupTable::Takes(GroupId id, int64_t tokens,
                       std::optional<std::string_view> fingerprint) const {
  return At(id).has_room() && Suits(id, tokens, fingerprint);
}

bool GroupTable::any_room() const {
  return std::any_of(groups_.begin(), groups_.end(),
                     [](const Group& group) { return group.takes_requests() && group.has_room(); });
}

TimeUs GroupTable::LeastPrefillTime() const {
  TimeUs least = kNever;
  for (const Group& group : groups_) {
    if (!group.takes_requests()) continue;
    const double rate = group.state.prefill_tokens_per_s;
    const auto tokens = static_cast<double>(group.pending_prompt_tokens());
    least = std::min(least, rate > 0 ? static_cast<TimeUs>(tokens * 1e6 / rate) : 0);
  }
  return least == kNever ? 0 : least;
}

bool GroupTable::Serves(std::optional<std::string_view> fingerprint) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const Group& group) {
    return group.takes_requests() && (!fingerprint || group.facts.fingerprint == *fingerprint);
  });
}

int GroupTable::context_tokens_max() const {
  int longest = 0;
  for (const Group& group : groups_) {
    if (group.takes_requests()) longest = std::max(longest, group.facts.context_tokens);
  }
  return longest;
}

absl::Status GroupTable::Check() const {
  bool any = false;
  for (size_t i = 0; i < groups_.size(); ++i) {
    const Group& group = groups_[i];
    any = any || group.takes_requests();
    int64_t unseen = 0;
    for (const int64_t tokens : group.unseen) unseen += tokens;
    if (unseen != group.unseen_tokens || std::ssize(group.unseen) > group.submits) {
      return Internal("group {}: {} tokens unseen, counted {}", i, group.unseen_tokens, unseen);
    }
    if (group.mirror.links() > mirror_links_max_) {
      return Internal("group {}: {} links mirrored, at most {} may", i, group.mirror.links(),
                      mirror_links_max_);
    }
    const bool idle = group.own == 0 && group.submits == 0 && group.mirror.links() == 0;
    if (!group.up && !idle) return Internal("group {} is down and not empty", i);
  }
  if (any != (none_since_ == kNever)) {
    return Internal("groups take requests: {}, none since {}", any, none_since_);
  }
  return absl::OkStatus();
}

}  // namespace facet
