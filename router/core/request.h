#ifndef FACET_ROUTER_CORE_REQUEST_H_
#define FACET_ROUTER_CORE_REQUEST_H_

// What goes into the router core and what comes out of it, as plain values. A request has one
// choice per prompt and n; each choice is one sequence, which a group of shard workers computes.

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"

namespace facet {

using TimeUs = int64_t;  // microseconds of a monotonic clock
inline constexpr TimeUs kNever = std::numeric_limits<TimeUs>::max();

// A request as the core numbers it; never used twice.
using RequestId = StrongId<struct RequestTag, uint64_t>;

// What leaders need of a request and the core only passes on: sampling, stop tokens and the like.
// The service derives its own from it.
class SequenceParams {
 public:
  virtual ~SequenceParams() = default;
};

struct RouterPrompt {
  std::vector<TokenId> tokens;
  int max_tokens = 1;   // output of each choice. 0: only the prompt's log-probabilities are wanted
  bool scored = false;  // resumed: the client has the prompt's log-probabilities
};

// How far the client of a stream that broke off has come with one choice.
struct ResumePoint {
  int prompt_index = 0;
  int choice_index = 0;
  std::vector<TokenId> tokens;  // all that it has received
  std::string fingerprint;      // as received; REQUIRED with tokens
  bool finished = false;        // its end has been received: nothing of it is sent again
};

struct RouterRequest {
  std::string client_id;  // the client's name for it, unique among those alive
  std::string tenant;
  int priority = 0;  // higher first
  std::vector<RouterPrompt> prompts;
  int n = 1;  // choices per prompt
  uint64_t seed = 0;
  bool prompt_logprobs = false;
  TimeUs deadline = kNever;
  // Where choices go on; those left out start from the beginning.
  std::vector<ResumePoint> resume;
  // A request of the same tenant with the same client_id that is alive is cancelled and replaced.
  bool takes_over = false;
  // Memory that waits with the request beyond what is here: params and what the service keeps.
  int64_t extra_bytes = 0;
  std::shared_ptr<const SequenceParams> params;
};

// How a choice ended.
enum class EndReason { kStop, kLength, kCancelled, kDeadline, kError };

struct OutputToken {
  TokenId id = 0;
  float logprob = 0;
  std::vector<std::pair<TokenId, float>> top;  // best first
};

// News of one sequence from the leader that runs it.
struct LeaderDelta {
  SequenceId sequence;
  int offset = 0;  // output tokens before `tokens`
  std::vector<OutputToken> tokens;
  int prompt_offset = 0;  // position of the first of `prompt`
  std::vector<OutputToken> prompt;
  std::optional<EndReason> finish;
  absl::Status error;  // with kError
  // With finish:
  int cached_tokens = 0;
  TimeUs queue_us = 0, prefill_us = 0, decode_us = 0;
  std::string logits_sha256;
};

struct ChoiceEnd {
  EndReason reason = EndReason::kStop;
  absl::Status status;  // not OK with kCancelled, kDeadline and kError
  int cached_tokens = 0;
  TimeUs queue_us = 0;    // from arrival to the first step that computed something of it
  TimeUs prefill_us = 0;  // from there to the first token
  TimeUs decode_us = 0;   // from the first token to the last
  std::string logits_sha256;
  bool request_done = false;  // it was the request's last choice: the request is forgotten
};

// News of one choice for its client.
struct ChoiceDelta {
  RequestId request;
  int prompt_index = 0;
  int choice_index = 0;
  int offset = 0;  // output tokens before `tokens`
  std::vector<OutputToken> tokens;
  int prompt_offset = 0;
  std::vector<OutputToken> prompt;  // only of choice 0
  // What computes the choice; in its first delta with tokens after Submit().
  std::string fingerprint;
  // With the first tokens after a migration: the time since the last token before it.
  std::optional<TimeUs> migration_gap;
  std::optional<ChoiceEnd> end;  // nothing follows
};

// A sequence for a leader to run.
struct SubmitAction {
  GroupId group;
  SequenceId sequence;
  std::vector<TokenId> tokens;  // prompt, then what earlier groups emitted
  int prompt_length = 0;
  uint64_t seed = 0;        // of the sequence
  int max_tokens = 1;       // output in all, at least 1
  uint64_t cache_salt = 0;  // of the tenant
  bool prompt_logprobs = false;
  TimeUs deadline = kNever;
  std::shared_ptr<const SequenceParams> params;
};

// A sequence that a leader may forget. It may have ended there already.
struct CancelAction {
  GroupId group;
  SequenceId sequence;
};

// To one group submits go before cancels; deltas go to their clients in order.
struct CoreActions {
  std::vector<SubmitAction> submits;
  std::vector<CancelAction> cancels;
  std::vector<ChoiceDelta> deltas;
  // Requests that were accepted and have nothing to send: all their choices were resumed as
  // finished. Like a delta with request_done: the request is forgotten.
  std::vector<RequestId> done;

  bool empty() const {
    return submits.empty() && cancels.empty() && deltas.empty() && done.empty();
  }
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_REQUEST_H_
