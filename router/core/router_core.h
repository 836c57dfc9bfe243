#ifndef FACET_ROUTER_CORE_ROUTER_CORE_H_
#define FACET_ROUTER_CORE_ROUTER_CORE_H_

// Decides which group runs a sequence and when it may go there, and keeps every stream going when
// a group dies. Sans-IO: events and the time go in, actions come out; no thread, clock, socket or
// log is in here. Not thread-safe; one thread owns it.
//
// A request is split into sequences, one per prompt and choice. A sequence waits in the queue, is
// placed on a group, and ends exactly once. What it has emitted is remembered, so that a group's
// death costs a pause: prompt and output go to another group with the same fingerprint, or to the
// same one once it is back, and the tokens go on where they stopped.

#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/ids.h"
#include "router/core/group_table.h"
#include "router/core/live_request.h"
#include "router/core/refusal.h"
#include "router/core/request.h"
#include "router/core/request_queue.h"

namespace facet {

struct RouterCoreOptions {
  RequestQueueOptions queue;
  // How long a request or an interrupted sequence waits while no group can take it.
  TimeUs group_wait_us = 30'000'000;
  // How long a stopped sequence waits for its leader's last word (cached tokens, timings).
  TimeUs stop_grace_us = 500'000;
  // Groups that may die under a sequence without a new token before it ends with an error.
  int fruitless_deaths_max = 2;
  // Of each group's prefix cache at most so many links are remembered.
  int64_t mirror_links_max = int64_t{1} << 18;
  // When a client that was turned away may come again.
  TimeUs retry_after_us = 1'000'000;
};

struct RouterCoreStats {
  int64_t requests = 0;  // alive
  int64_t queued_requests = 0;
  int64_t queued_tokens = 0;
  int64_t running_sequences = 0;
  int64_t interrupted_sequences = 0;  // wait for a group to go on
};

// Events since the start, for metrics.
struct RouterCoreCounters {
  int64_t resubmissions = 0;
  int64_t pauses = 0;            // requests whose client read too slowly
  int64_t poisoned = 0;          // ended because too many groups died under them
  int64_t duplicate_tokens = 0;  // dropped
  int64_t gaps = 0;              // tokens that leaders left out
  int64_t migrations = 0;        // sequences that lost their group after tokens
  int64_t takeovers = 0;         // requests that another stream of their client replaced
  int64_t epoch_changes = 0;     // groups that came back with another epoch
  RefusalCounts refusals;        // requests that Submit() refused
  RefusalCounts sheds;           // requests that were turned away after they had been accepted
};

class RouterCore {
 public:
  RouterCore(const RouterCoreOptions& options, TimeUs now)
      : options_(options), groups_(options.mirror_links_max, now), queue_(options.queue) {}

  GroupId AddGroup() { return groups_.Add(); }

  // A leader's session: Up, then State and Delta in the order they arrive, then Down.
  void OnGroupUp(GroupId group, GroupFacts facts);
  void OnGroupState(GroupId group, const GroupState& state, TimeUs now);
  void OnGroupDown(GroupId group, TimeUs now);
  // Ignored while the group is down, and in each session until the first news with `reset`.
  void OnCacheNews(GroupId group, const GroupCacheNews& news) { groups_.CacheNews(group, news); }
  // Deltas of sequences that have ended or moved on are ignored.
  void OnDelta(GroupId group, LeaderDelta delta, TimeUs now);

  // AlreadyExists: the client's id is alive, and the request does not take over or is another
  // tenant's. InvalidArgument: its resume points. ResourceExhausted: the queue is full.
  // Unavailable: no group for a long time. DeadlineExceeded. Nothing has changed then. The refusals
  // that may be repeated say when (refusal.h). After OK each choice ends exactly once, those that
  // were resumed as finished excepted; if all were, the request is in CoreActions::done.
  // REQUIRES: prompts, none empty; n >= 1.
  absl::StatusOr<RequestId> Submit(RouterRequest request, TimeUs now);
  // The client is gone: every choice ends with kCancelled. Unknown ids are ignored, here and below.
  void Cancel(RequestId request, TimeUs now);
  // The choice's text is complete: it ends with kStop once its leader has confirmed, or after a
  // grace period; its later tokens are dropped.
  void Stop(RequestId request, int prompt_index, int choice_index, TimeUs now);

  // The client reads too slowly: its sequences leave their groups, and its queued ones stay where
  // they are, until Resume(). Deadlines still count.
  void Pause(RequestId request);
  void Resume(RequestId request, TimeUs now);

  // Ends what has waited too long. Call at NextWake(), at the latest.
  void Tick(TimeUs now);
  TimeUs NextWake() const;

  // What the events since the last call ask for. Every event may have produced some.
  CoreActions TakeActions() { return std::exchange(actions_, {}); }

  RouterCoreStats stats() const;
  const RouterCoreCounters& counters() const { return counters_; }

 private:
  using Place = SequencePlace;

  // Gives groups what they can take: first what was interrupted, then the queue.
  void PlaceAll(TimeUs now);
  void PlaceInterrupted(TimeUs now);
  void PlaceQueued(TimeUs now);
  void PlaceOn(GroupId group, Place place, TimeUs now);

  // A running sequence leaves its group: Detach when the leader has forgotten it, Recall when the
  // leader has to be told.
  void Detach(Sequence& sequence);
  void Recall(Sequence& sequence);
  // After the group of a detached sequence has failed it: waits for another group, or ends.
  void Interrupt(Place place, TimeUs now);
  // Its paused sequences wait for groups; it may be gone then, if they are all complete.
  void AwaitGroups(LiveRequest& request, TimeUs now);
  // The sequence waits for a group to go on with it, unless it is complete.
  void AwaitGroup(Place place, TimeUs now);
  void Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now);
  // Ends the sequence, and forgets the request with its last one: `place` is gone then.
  void End(Place place, ChoiceEnd end, ChoiceDelta out);
  // Why a request may not enter.
  absl::Status Admit(const RouterRequest& request, TimeUs now);
  // Counts a refusal and notes when to come again.
  absl::Status Refuse(Refusal refusal);
  void Enqueue(const LiveRequest& request);
  void EndRequest(RequestId id, EndReason reason, const absl::Status& status, TimeUs now);
  void SetWait(Place place, TimeUs give_up);
  void ExpireDeadlines(TimeUs now);
  void ExpireWaits(TimeUs now);
  void ExpireQueue(TimeUs now);
  LiveRequest* Find(RequestId id);

  RouterCoreOptions options_;
  GroupTable groups_;
  RequestQueue queue_;
  absl::flat_hash_map<RequestId, std::unique_ptr<LiveRequest>> requests_;
  absl::flat_hash_map<std::string, RequestId> client_ids_;
  std::set<std::pair<TimeUs, RequestId>> deadlines_;
  absl::flat_hash_map<SequenceId, Place> placed_;  // kRunning and kStopping
  // Sequences with a give_up: request and index, the first to give up first.
  std::set<std::tuple<TimeUs, RequestId, size_t>> waits_;
  int64_t interrupted_ = 0;
  uint64_t last_request_ = 0;
  uint64_t last_sequence_ = 0;
  CoreActions actions_;
  RouterCoreCounters counters_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_ROUTER_CORE_H_
