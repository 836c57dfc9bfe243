#include "router/core/group_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

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

std::optional<GroupId> GroupTable::Choose(int64_t tokens,
                                          std::optional<std::string_view> fingerprint,
                                          std::optional<GroupId> avoid) const {
  std::optional<GroupId> best;
  std::pair<bool, int64_t> best_cost;  // avoided, load
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    const Group& group = groups_[i];
    if (!group.takes_requests() || group.credit() <= 0) continue;
    if (tokens >= group.facts.context_tokens) continue;
    if (fingerprint && *fingerprint != group.facts.fingerprint) continue;
    const std::pair<bool, int64_t> cost(avoid == GroupId{i}, group.own + group.others);
    if (best && cost >= best_cost) continue;
    best = GroupId{i};
    best_cost = cost;
  }
  return best;
}

bool GroupTable::Serves(std::string_view fingerprint) const {
  return std::any_of(groups_.begin(), groups_.end(), [&](const Group& group) {
    return group.takes_requests() && group.facts.fingerprint == fingerprint;
  });
}

int GroupTable::context_tokens_max() const {
  int longest = 0;
  for (const Group& group : groups_) {
    if (group.takes_requests()) longest = std::max(longest, group.facts.context_tokens);
  }
  return longest;
}

}  // namespace facet
