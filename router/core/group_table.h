#ifndef FACET_ROUTER_CORE_GROUP_TABLE_H_
#define FACET_ROUTER_CORE_GROUP_TABLE_H_

// The groups a router knows: which are up, what they serve, have cached and may still be given.
// Not thread-safe; the router core owns it.

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "router/core/prefix_mirror.h"
#include "router/core/request.h"

namespace facet {

// What a leader says when its session begins.
struct GroupFacts {
  std::string fingerprint;  // groups with equal fingerprints give equal answers
  int context_tokens = 0;   // prompt + output of a sequence, at most
  int block_tokens = 0;     // of a KV block, and of a prefix link; 0: the group reuses no prefixes
  uint64_t epoch = 0;       // changes when the group forms anew
  int slots = 0;            // sequences that run at once, at most; 0: it does not say
};

// What a leader says from time to time.
struct GroupState {
  int64_t running = 0;  // sequences, of all routers
  int64_t waiting = 0;
  int64_t credit_tokens = 0;  // prompt tokens that this router may still submit
  // Submits of this session that the leader had counted when it said so; absent: all of them.
  std::optional<int64_t> submits_received;
  bool draining = false;              // takes nothing new
  int64_t pending_prompt_tokens = 0;  // of all routers' sequences: accepted, not yet computed
  double prefill_tokens_per_s = 0;    // 0: unknown
};

class GroupTable {
 public:
  // Of each group's cache at most `mirror_links_max` links are remembered.
  GroupTable(int64_t mirror_links_max, TimeUs now)
      : mirror_links_max_(mirror_links_max), none_since_(now) {}

  GroupId Add();
  // A session has begun. The group has no credit until its first state.
  void Up(GroupId id, GroupFacts facts);
  // REQUIRES: the group is up.
  void State(GroupId id, const GroupState& state, TimeUs now);
  // Ignored while the group is down.
  void CacheNews(GroupId id, const GroupCacheNews& news);
  // The session has ended, and with it all sequences. No-op on a group that is down.
  void Down(GroupId id, TimeUs now);

  // A sequence with `tokens` known tokens goes to the group. REQUIRES: Takes().
  void Start(GroupId id, int64_t tokens);
  // A sequence of the group has ended or was taken back. REQUIRES: the group is up.
  void End(GroupId id);

  // Whether the group may be given a sequence with `tokens` known ones: it takes requests, has
  // credit and a slot, fits them and one more and has the fingerprint, if one is given. A prompt
  // larger than the credit may pass while there is some: a leader grants less than a long prompt.
  // Many short prompts fit one free slot's credit; so the slots are counted, too.
  bool Takes(GroupId id, int64_t tokens, std::optional<std::string_view> fingerprint) const;
  // The same, whether it has credit or not.
  bool Suits(GroupId id, int64_t tokens, std::optional<std::string_view> fingerprint) const;
  // Whether some group that takes requests has credit and a slot.
  bool any_room() const;
  // Whether some group takes requests and has the fingerprint, if one is given; with credit or
  // without.
  bool Serves(std::optional<std::string_view> fingerprint) const;
  // How long the group that is ready first computes the prompts it has; 0 where no rate is known.
  TimeUs LeastPrefillTime() const;
  // The longest context among the groups that take requests; 0 if there is none.
  int context_tokens_max() const;

  uint32_t size() const { return static_cast<uint32_t>(groups_.size()); }
  bool up(GroupId id) const { return At(id).up; }
  // Sequences of this router that are there.
  int64_t own(GroupId id) const { return At(id).own; }
  // And of all routers, as far as is known.
  int64_t load(GroupId id) const { return At(id).load(); }
  int64_t pending_prompt_tokens(GroupId id) const { return At(id).pending_prompt_tokens(); }
  double prefill_tokens_per_s(GroupId id) const { return At(id).state.prefill_tokens_per_s; }
  int block_tokens(GroupId id) const { return At(id).facts.block_tokens; }
  const PrefixMirror& mirror(GroupId id) const { return At(id).mirror; }
  const std::string& fingerprint(GroupId id) const { return At(id).facts.fingerprint; }
  // Groups that came back with another epoch.
  int64_t epoch_changes() const { return epoch_changes_; }
  // Since when no group takes requests; kNever while one does.
  TimeUs none_since() const { return none_since_; }
  // The first invariant that does not hold.
  absl::Status Check() const;

 private:
  struct Group {
    bool up = false;
    GroupFacts facts;
    GroupState state;
    PrefixMirror mirror{0};
    int64_t own = 0;                     // sequences of this router
    int64_t others = 0;                  // and of other routers, as of the last state
    int64_t submits = 0;                 // in this session
    std::optional<uint64_t> last_epoch;  // survives the session
    std::deque<int64_t> unseen;          // tokens of the latest submits, which no state counts yet
    int64_t unseen_tokens = 0;

    bool takes_requests() const { return up && !state.draining; }
    int64_t credit() const { return state.credit_tokens - unseen_tokens; }
    int64_t load() const { return own + others; }
    bool has_slot() const { return facts.slots == 0 || load() < facts.slots; }
    bool has_room() const { return credit() > 0 && has_slot(); }
    int64_t pending_prompt_tokens() const { return state.pending_prompt_tokens + unseen_tokens; }
  };
  Group& At(GroupId id);
  const Group& At(GroupId id) const;
  void NoteAvailability(TimeUs now);

  int64_t mirror_links_max_;
  std::vector<Group> groups_;
  int64_t epoch_changes_ = 0;
  TimeUs none_since_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_GROUP_TABLE_H_
