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
#include "router/core/placement.h"
#include "router/core/refusal.h"
#include "router/core/request.h"
#include "router/core/request_queue.h"
#include "router/core/retry_budget.h"
#include "router/core/running_table.h"
#include "router/core/service_rate.h"
#include "router/core/tenant_shares.h"

namespace facet {

// When a tenant's running sequence gives way to another tenant's request that waits.
struct FairnessOptions {
  TimeUs unfair_wait_us = 100'000;  // the request is next and has waited so long; 0: never
  // The tenant has more running sequences than the other, per weight, by more than this.
  double skew_max = 2;
  TimeUs interval_us = 20'000;  // between two such sequences
  int preemptions_max = 2;      // of one sequence
};

struct RouterCoreOptions {
  RequestQueueOptions queue;
  TenantSharesOptions tenants;
  FairnessOptions fairness;
  PlacementOptions placement;
  RetryBudgetOptions retries;
  int64_t requests_max = 65'536;  // alive
  // Requests whose first token is expected later are refused while groups are busy, and those that
  // have waited longer are turned away. 0: off.
  TimeUs ttft_target_us = 0;
  // How long a request or an interrupted sequence waits after the last group that could take it
  // has gone.
  TimeUs group_wait_us = 30'000'000;
  // How long a stopped sequence waits for its leader's last word (cached tokens, timings).
  TimeUs stop_grace_us = 500'000;
  // Groups that may die under a sequence without a new token before it ends with an error.
  int fruitless_deaths_max = 2;
  // Groups that may decline it, because they drain, before that counts as a death too.
  int fruitless_declines_max = 100;
  // Of each group's prefix cache at most so many links are remembered.
  int64_t mirror_links_max = int64_t{1} << 18;
  // Over how long a time the groups' work is averaged.
  TimeUs rate_window_us = 1'000'000;
  // When a client that was turned away may come again: as predicted, within bounds, or this.
  TimeUs retry_after_us = 1'000'000;
  TimeUs retry_after_min_us = 50'000;
  TimeUs retry_after_max_us = 10'000'000;
  uint64_t seed = 0;  // of what is drawn: placements, retry delays
};

struct RouterCoreStats {
  int64_t requests = 0;  // alive
  int64_t queued_requests = 0;
  int64_t queued_tokens = 0;
  int64_t queued_bytes = 0;
  int64_t running_sequences = 0;
  int64_t interrupted_sequences = 0;  // wait for a group to go on
};

// Sequences whose deadline passed, by what they were doing.
struct ExpiredCounts {
  int64_t queued = 0;
  int64_t running = 0;
  int64_t interrupted = 0;
  int64_t paused = 0;
};

// Events since the start, for metrics.
struct RouterCoreCounters {
  int64_t resubmissions = 0;     // of interrupted sequences
  int64_t retries = 0;           // sequences that lost their group before the first token
  int64_t migrations = 0;        // sequences that lost their group after it
  int64_t pauses = 0;            // requests whose client read too slowly
  int64_t poisoned = 0;          // ended because too many groups died under them
  int64_t duplicate_tokens = 0;  // dropped
  int64_t gaps = 0;              // tokens that leaders left out
  int64_t takeovers = 0;         // requests that another stream of their client replaced
  int64_t preemptions = 0;       // running sequences that gave way to another tenant
  int64_t prefix_tokens = 0;     // that placed sequences probably found cached
  int64_t epoch_changes = 0;     // groups that came back with another epoch
  ExpiredCounts expired;
  RefusalCounts refusals;  // requests that Submit() refused
  RefusalCounts sheds;     // requests (with kRetries: sequences) turned away after they had entered
};

class RouterCore {
 public:
  RouterCore(const RouterCoreOptions& options, TimeUs now);

  GroupId AddGroup() { return groups_.Add(); }

  // A leader's session: Up, then State, Delta and CacheNews in the order they arrive, then Down.
  void OnGroupUp(GroupId group, GroupFacts facts);
  void OnGroupState(GroupId group, const GroupState& state, TimeUs now);
  void OnGroupDown(GroupId group, TimeUs now);
  // Ignored while the group is down, and in each session until the first news with `reset`.
  void OnCacheNews(GroupId group, const GroupCacheNews& news) { groups_.CacheNews(group, news); }
  // Deltas of sequences that have ended or moved on are ignored.
  void OnDelta(GroupId group, LeaderDelta delta, TimeUs now);

  // AlreadyExists: the client's id is alive, and the request does not take over or is another
  // tenant's. InvalidArgument: its resume points. ResourceExhausted: a bound is reached, or the
  // first token would come too late. Unavailable: no group for a long time. DeadlineExceeded.
  // Nothing has changed then. The refusals that may be repeated say when (refusal.h).
  // After OK each choice ends exactly once, those that were resumed as finished excepted; if all
  // were, the request is in CoreActions::done. An accepted request may still be turned away, with
  // the same statuses, until something of it has run. REQUIRES: prompts, none empty; n >= 1.
  absl::StatusOr<RequestId> Submit(RouterRequest request, TimeUs now);
  // The client is gone: every choice ends with kCancelled. Unknown ids are ignored, here and below.
  void Cancel(RequestId request, TimeUs now);
  // The choice's text is complete: it ends with kStop once its leader has confirmed, or after a
  // grace period; its later tokens are dropped. It has tokens.
  void Stop(RequestId request, int prompt_index, int choice_index, TimeUs now);

  // The client reads too slowly: its sequences leave their groups and the queue, until Resume().
  // Deadlines still count.
  void Pause(RequestId request);
  void Resume(RequestId request, TimeUs now);

  // Ends what has waited too long. Call at NextWake(), at the latest.
  void Tick(TimeUs now);
  TimeUs NextWake() const;

  // What the events since the last call ask for. Every event may have produced some.
  CoreActions TakeActions() { return std::exchange(actions_, {}); }

  RouterCoreStats stats() const;
  const RouterCoreCounters& counters() const { return counters_; }
  // The tenants that have had most, at most so many.
  std::vector<TenantStats> TopTenants(size_t most) const;

  // For tests: a sentence about the first invariant that does not hold.
  absl::Status Check() const;

 private:
  using Place = SequencePlace;

  // router_core.cc: requests come and go.

  // Why a request may not even be considered.
  absl::Status CheckNew(const RouterRequest& request, TimeUs now) const;
  // Why the request may not enter. If others have to leave for it, they are in `victims`.
  std::optional<Refusal> Admit(const LiveRequest& request, std::vector<RequestId>& victims,
                               TimeUs now) const;
  // How long the tenant's request would wait for a group and there for its turn.
  TimeUs PredictTtft(TenantSlot tenant, int priority, TimeUs now) const;
  // Notes when to come again: after `estimate`, if there is one.
  absl::Status WithRetryDelay(absl::Status status, TimeUs estimate);
  absl::Status Refuse(Refusal refusal, TimeUs estimate);
  // Turns a request away that was accepted.
  void Shed(RequestId id, Refusal refusal, TimeUs now);
  // The request's waiting sequences enter the queue. REQUIRES: there are some.
  void Enqueue(const LiveRequest& request, TimeUs now);
  // A waiting sequence leaves the queue.
  void Unqueue(Place place);
  // Of a sequence that waits: what it will probably cost.
  int64_t CostOf(const LiveRequest& request, const RoutedSequence& sequence) const;
  // Ends the sequence, and forgets the request with its last one: `place` is gone then.
  void End(Place place, ChoiceEnd end, ChoiceDelta out);
  void EndRequest(RequestId id, EndReason reason, const absl::Status& status, TimeUs now);
  void CountExpired(Phase phase);
  void Forget(const LiveRequest& request);
  LiveRequest* Find(RequestId id) const;

  // router_core_sequences.cc: sequences and their groups.

  // Gives groups what they can take: first what was interrupted, then the queue.
  void PlaceAll(TimeUs now);
  void PlaceInterrupted(TimeUs now);
  void PlaceQueued(TimeUs now);
  // What the front of the queue can only wait for elsewhere, or not at all, leaves it; false if it
  // has to wait there.
  bool MoveFrontAside(Place place, TimeUs now);
  std::optional<PlacementChoice> Choose(Place place);
  // `chosen`: because it was its tenant's turn.
  void PlaceOn(const PlacementChoice& choice, Place place, bool chosen, TimeUs now);
  // If the front of the queue has waited too long, a tenant that has much more of the groups gives
  // a sequence back.
  void RelieveFront(TimeUs now);
  std::optional<Place> FindVictim(Place front) const;
  void TakeBack(Place victim, TimeUs now);

  void Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now);
  // A running sequence leaves its group: Detach when the leader has forgotten it, Recall when the
  // leader has to be told.
  void Detach(Place place);
  void Recall(Place place);
  // After the group of a detached sequence has failed or declined it: waits for another group, or
  // ends.
  void Interrupt(Place place, bool failed, TimeUs now);
  // The sequence waits for a group to go on with it, unless it is complete.
  void AwaitGroup(Place place, TimeUs now);
  // Its paused sequences do; it may be gone then, if they are all complete.
  void AwaitGroups(LiveRequest& request, TimeUs now);
  // kNever: no wait.
  // The last group with the fingerprint has gone: who waits for it waits from now on.
  void RestartWaits(const std::string& fingerprint, TimeUs now);
  void SetWait(Place place, TimeUs give_up);
  void ExpireDeadlines(TimeUs now);
  void ExpireWaits(TimeUs now);
  void ExpireQueue(TimeUs now);

  // router_core_check.cc
  absl::Status CheckRequest(const LiveRequest& request) const;
  absl::Status CheckSequence(const LiveRequest& request, size_t index) const;
  absl::Status CheckTenants() const;
  absl::Status CheckWakes() const;

  RouterCoreOptions options_;
  GroupTable groups_;
  Placement placement_;
  TenantShares shares_;
  RequestQueue queue_;
  ServiceRate rate_;  // in the unit of TenantShares::CostOf
  RetryBudget retries_;
  absl::flat_hash_map<RequestId, std::unique_ptr<LiveRequest>> requests_;
  absl::flat_hash_map<std::string, RequestId> client_ids_;
  std::set<std::pair<TimeUs, RequestId>> deadlines_;
  RunningTable running_;  // kRunning and kStopping
  // Sequences with a give_up: request and index, the first to give up first.
  std::set<std::tuple<TimeUs, RequestId, size_t>> waits_;
  int64_t interrupted_ = 0;
  bool outage_ = true;         // no group takes requests, or none has said yet what it can take
  TimeUs relieved_at_;         // when RelieveFront() last looked for a victim
  TimeUs unfair_at_ = kNever;  // when it has to look again
  uint64_t last_request_ = 0;
  uint64_t last_sequence_ = 0;
  uint64_t retry_delays_ = 0;
  CoreActions actions_;
  RouterCoreCounters counters_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_ROUTER_CORE_H_
