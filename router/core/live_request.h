#ifndef FACET_ROUTER_CORE_LIVE_REQUEST_H_
#define FACET_ROUTER_CORE_LIVE_REQUEST_H_

// A request that is alive in the router core, its sequences, and what can be said of one sequence
// without knowing of any other. The router core owns them and keeps their phases.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "router/core/request.h"
#include "router/core/tenant_shares.h"

namespace facet {

enum class Phase {
  kQueued,       // waits in the queue, or is paused with its request before it was ever placed
  kRunning,      // on a group
  kStopping,     // on a group, complete for its client
  kInterrupted,  // its group failed it, or its pause is over; waits for a group to go on
  kPaused,       // on no group, because its client reads too slowly; resumed ones begin so
  kEnded,
};

struct RoutedSequence {
  int prompt_index = 0;
  int choice_index = 0;
  Phase phase = Phase::kQueued;
  SequenceId number;  // of its current submission; 0: on no group
  GroupId group;
  std::string fingerprint;  // of its latest group; its tokens bind it to that, once it has some
  std::vector<TokenId> emitted;
  int resumed = 0;             // of them the client brought so many
  int prompt_scored = 1;       // prompt positions up to here need no log-probability any more
  int fruitless_deaths = 0;    // of its groups, without a token between
  int fruitless_declines = 0;  // of groups that drain
  int submissions = 0;
  int preemptions = 0;  // for fairness
  int promised = 0;     // output tokens its tenant may still be charged for, once it is placed
  bool fingerprint_told = false;
  bool migrating = false;   // lost its group after tokens, and has no new one yet
  TimeUs give_up = kNever;  // kStopping, kInterrupted: when the wait ends
  TimeUs placed_at = 0;     // first time
  TimeUs first_token_at = 0;
  TimeUs last_token_at = 0;

  // Whether any group may run it: nothing has been sent that only an equal group continues.
  bool fresh() const { return emitted.empty() && prompt_scored == 1; }
};

// The prefix links of a prompt, in blocks of some size.
struct PromptLinks {
  int block_tokens = 0;
  std::vector<uint64_t> links;
};

struct LiveRequest {
  RequestId id;
  TenantSlot tenant = 0;
  RouterRequest request;
  TimeUs arrived_at = 0;
  std::vector<RoutedSequence> sequences;  // by prompt, then choice
  // The sequences in phase kQueued, the next one last.
  std::vector<size_t> waiting;
  bool paused = false;
  size_t alive = 0;
  uint64_t cache_salt = 0;
  int64_t expected_output = 0;     // tokens of a choice, as its tenant's latest had
  std::vector<PromptLinks> links;  // by prompt; computed when a group could have some of them

  const RouterPrompt& prompt(const RoutedSequence& sequence) const {
    return request.prompts[sequence.prompt_index];
  }
  // What a group has to be given: prompt and output so far.
  int64_t known_tokens(const RoutedSequence& sequence) const {
    return std::ssize(prompt(sequence).tokens) + std::ssize(sequence.emitted);
  }
  size_t index_of(int prompt_index, int choice_index) const {
    return static_cast<size_t>(prompt_index) * request.n + choice_index;
  }
};

// Where a sequence lives. Pointers to requests are stable.
struct SequencePlace {
  LiveRequest* request;
  size_t index;
  RoutedSequence& sequence() const { return request->sequences[index]; }
};

// InvalidArgument, if the resume points contradict the request or each other.
absl::Status CheckResume(const RouterRequest& request);
// Sequences for every prompt and choice, at the point where the request resumes them.
void MakeSequences(LiveRequest& request);

// Whether it came with tokens: a stream that broke off, which its client wants to go on.
bool GoesOn(const LiveRequest& request);
// What the request takes of memory, about.
int64_t BytesOf(const LiveRequest& request);
// The links of the sequence's prompt.
std::span<const uint64_t> LinksOf(LiveRequest& request, const RoutedSequence& sequence,
                                  int block_tokens);

// What a leader's delta does to a sequence.
struct Acceptance {
  bool whole = true;       // nothing was left out before it; if something was, nothing is accepted
  int64_t duplicates = 0;  // tokens that were known
};
// Moves what is new in `delta` to `out`.
Acceptance Accept(const LiveRequest& request, RoutedSequence& sequence, LeaderDelta& delta,
                  ChoiceDelta& out, TimeUs now);

// A delta of the sequence from where it is, without news.
ChoiceDelta DeltaOf(const SequencePlace& place);
// An end with times as this router saw them.
ChoiceEnd MeasuredEnd(const LiveRequest& request, const RoutedSequence& sequence, EndReason reason,
                      absl::Status status, TimeUs now);
// The submit of a sequence that is now on sequence.group with sequence.number.
SubmitAction SubmitOf(const LiveRequest& request, const RoutedSequence& sequence);

}  // namespace facet

#endif  // FACET_ROUTER_CORE_LIVE_REQUEST_H_
