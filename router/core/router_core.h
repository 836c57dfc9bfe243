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
#include <map>
#include <memory>
#include <optional>
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
};

class RouterCore {
 public:
  RouterCore(const RouterCoreOptions& options, TimeUs now)
      : options_(options), groups_(now), queue_(options.queue) {}

  GroupId AddGroup() { return groups_.Add(); }

  // A leader's session: Up, then State and Delta in the order they arrive, then Down.
  void OnGroupUp(GroupId group, GroupFacts facts);
  void OnGroupState(GroupId group, const GroupState& state, TimeUs now);
  void OnGroupDown(GroupId group, TimeUs now);
  // Deltas of sequences that have ended or moved on are ignored.
  void OnDelta(GroupId group, LeaderDelta delta, TimeUs now);

  // AlreadyExists: the client's id is alive. ResourceExhausted: the queue is full. Unavailable: no
  // group for a long time. DeadlineExceeded. Nothing has changed then. After OK each choice ends
  // exactly once. REQUIRES: prompts, none empty; n >= 1.
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
  enum class Phase {
    kQueued,
    kRunning,      // on a group
    kStopping,     // on a group, complete for its client
    kInterrupted,  // its group died, or its pause is over; waits for another
    kPaused,       // on no group, because its client reads too slowly
    kEnded,
  };

  struct Sequence {
    int prompt_index = 0;
    int choice_index = 0;
    Phase phase = Phase::kQueued;
    SequenceId number;  // of its current submission; 0: on no group
    GroupId group;
    std::string fingerprint;  // of its latest group; its tokens bind it to that, once it has some
    std::vector<TokenId> emitted;
    int prompt_scored = 1;  // prompt positions up to here need no log-probability any more
    int fruitless_deaths = 0;
    int submissions = 0;
    TimeUs give_up = kNever;  // kStopping, kInterrupted: when the wait ends
    TimeUs placed_at = 0;     // first time
    TimeUs first_token_at = 0;
    TimeUs last_token_at = 0;
  };

  struct Request {
    RequestId id;
    RouterRequest request;
    TimeUs arrived_at = 0;
    std::vector<Sequence> sequences;  // by prompt, then choice
    size_t next_unplaced = 0;         // from here on they are queued, or paused with the request
    bool paused = false;
    size_t alive = 0;

    const RouterPrompt& prompt(const Sequence& sequence) const {
      return request.prompts[sequence.prompt_index];
    }
  };

  // Where a sequence lives. Pointers to requests are stable.
  struct Place {
    Request* request;
    size_t index;
    Sequence& sequence() const { return request->sequences[index]; }
  };

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
  // The sequence waits for a group to go on with it, unless it is complete.
  void AwaitGroup(Place place, TimeUs now);
  // Moves what is new in `delta` to `out`; false if something was left out before it.
  bool Accept(const Request& request, Sequence& sequence, LeaderDelta& delta, ChoiceDelta& out,
              TimeUs now);
  void Finish(Place place, LeaderDelta& delta, ChoiceDelta out, TimeUs now);
  // Ends the sequence, and forgets the request with its last one: `place` is gone then.
  void End(Place place, ChoiceEnd end, ChoiceDelta out);
  void Enqueue(const Request& request);
  void EndRequest(RequestId id, EndReason reason, const absl::Status& status, TimeUs now);
  // An end with times as this router saw them.
  static ChoiceEnd MeasuredEnd(const Request& request, const Sequence& sequence, EndReason reason,
                               absl::Status status, TimeUs now);
  static ChoiceDelta DeltaOf(const Place& place);

  void SetWait(Place place, TimeUs give_up);
  void ExpireDeadlines(TimeUs now);
  void ExpireWaits(TimeUs now);
  void ExpireQueue(TimeUs now);
  Request* Find(RequestId id);

  RouterCoreOptions options_;
  GroupTable groups_;
  RequestQueue queue_;
  absl::flat_hash_map<RequestId, std::unique_ptr<Request>> requests_;
  absl::flat_hash_map<std::string, RequestId> client_ids_;
  std::set<std::pair<TimeUs, RequestId>> deadlines_;
  std::map<SequenceId, Place> placed_;  // kRunning and kStopping; ordered, so that runs repeat
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
