#ifndef FACET_SHARD_WORKER_ENGINE_ENGINE_H_
#define FACET_SHARD_WORKER_ENGINE_ENGINE_H_

// Iteration-level scheduling of one group: continuous batching and chunked prefill over paged KV.
// Sans-IO: events and the time go in, step plans and deltas come out. Not thread-safe; the
// leader's engine thread owns it.

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "base/ids.h"
#include "shard_worker/engine/step_plan.h"

namespace facet {

using TimeUs = int64_t;  // microseconds of a monotonic clock

// Speculation by prompt lookup: a step may carry guesses of a sequence's next tokens and find out
// which are right, at the cost of a row each. What is chosen is the same without.
struct SpeculationOptions {
  int proposals_max = 0;   // of one sequence per step; 0: none
  int step_rows_max = 16;  // tokens of a step that carries proposals
  // A step takes as long as reading the weights and then so many rows would. So a further row is
  // worth its time if its chance is at least the tokens expected of the step / (rows + this).
  double free_rows = 10;
  int lookup_entries_max = 1 << 15;  // of each sequence's index of what it has said
};

struct EngineOptions {
  int block_tokens = 32;
  std::array<int, kBlockPools> blocks = {0, 0};  // per pool; 0: no layer uses the pool
  int64_t window = 0;                            // tokens a layer of the window pool sees
  int context_tokens = 0;                        // prompt + output of a sequence, at most
  int vocabulary_size = 0;
  int step_tokens_max = 512;    // budget of one step, decodes included
  int sequences_max = 64;       // running at once; slots are [0, sequences_max)
  int waiting_max = 1024;       // submitted and not running
  int prefill_chunk_max = 512;  // tokens of one sequence per step
  // Tokens of prompts in a step that also decodes: how long a long prompt may hold up the others.
  // While few decode, down to half of it.
  int mixed_prefill_max = 512;
  int logprobs_max = 64;  // alternatives with each token
  int stop_token_ids_max = 1024;
  int steps_max = 2;        // planned and not complete; 1: the next is planned after the last
  int preemptions_max = 4;  // of one sequence
  bool prefix_cache = true;
  SpeculationOptions speculation;
};

// kStopToken: the last token is one of stop_token_ids; it is among the delta's tokens.
// kLength: max_tokens, or the context is full.
// kError: the model's logits were not finite.
enum class EngineFinish { kStopToken, kLength, kCancelled, kDeadline, kError };

struct EngineRequest {
  SequenceId id;
  std::vector<TokenId> tokens;  // prompt, then what was emitted before a resubmission
  int prompt_length = 0;
  SamplingParams sampling;
  uint64_t seed = 0;
  int max_tokens = 0;  // output in all, tokens beyond prompt_length included
  std::vector<TokenId> stop_token_ids;
  int logprobs = -1;
  // These two want something of every prompt position: they use no cached prefix.
  bool prompt_logprobs = false;
  bool logits_digest = false;
  std::optional<TimeUs> deadline;
  uint64_t cache_salt = 0;  // only sequences of equal salt share cached prefixes
};

// News of one sequence after a step or an event.
struct EngineDelta {
  SequenceId id;
  int offset = 0;  // output tokens before this delta
  std::vector<ScoredToken> tokens;
  int prompt_offset = 0;  // position of the first of `prompt`
  std::vector<ScoredToken> prompt;
  std::optional<EngineFinish> finish;
  std::string error;  // with kError
  // With finish:
  int cached_tokens = 0;      // of the prompt, that were not computed thanks to the prefix cache
  std::string logits_sha256;  // with kStopToken or kLength, if the request asked for a digest
  TimeUs queue_us = 0, prefill_us = 0, decode_us = 0;
};

struct EngineStats {
  int running = 0;
  int waiting = 0;
  int64_t waiting_tokens = 0;  // of the waiting sequences
  // Tokens of all sequences that are known and not yet in a step, but for the last of each decode.
  int64_t pending_prompt_tokens = 0;
  std::array<int, kBlockPools> blocks_used = {0, 0};    // by sequences
  std::array<int, kBlockPools> blocks_cached = {0, 0};  // by nobody, but their keys may be reused
  std::array<int, kBlockPools> blocks_total = {0, 0};
  int64_t prompt_tokens_done = 0;  // computed for the first time
  int64_t cached_tokens = 0;       // of prompts, not computed thanks to the prefix cache
  int64_t output_tokens_done = 0;
  int64_t proposed_tokens = 0;  // by speculation, in complete steps
  int64_t accepted_tokens = 0;  // of them, those that were right
  int64_t preemptions = 0;
  int64_t expired_waiting = 0;  // sequences past their deadline that held no blocks
  int64_t expired_running = 0;
};

// Changes of the prefix cache, as links of base/prefix_hash.h: a prefix of whole blocks that ends
// with a stored link could be reused now; one that ends with an evicted link no longer.
struct CacheNews {
  std::vector<uint64_t> stored, evicted;
};

class Engine {
 public:
  explicit Engine(const EngineOptions& options);
  ~Engine();

  // Prompt + output of a sequence, at most: what the options say, or what the pools hold if that
  // is less.
  int context_tokens() const;

  // ResourceExhausted: too many wait. InvalidArgument: empty, too long for the context or the
  // pool, an id outside the vocabulary, a parameter out of its range; the message names the field.
  // Nothing changed then. REQUIRES: the id is new.
  absl::Status Submit(EngineRequest request, TimeUs now);
  // Its blocks and its slot are free at once, and results that outstanding steps bring for it are
  // discarded. Unknown ids are ignored: the sequence may have ended on its own.
  void Cancel(SequenceId id, TimeUs now);

  // The next step, or nothing if nothing can be computed before an outstanding step completes.
  // Ends what is past its deadline. REQUIRES: outstanding() < steps_max.
  std::optional<StepPlan> Plan(TimeUs now);
  // A plan without segments, for a group that idles; it needs no Complete().
  // REQUIRES: no step is outstanding.
  StepPlan PlanIdle();
  // REQUIRES: `result` answers the oldest outstanding plan.
  void Complete(const StepResult& result, TimeUs now);

  // Plans that were not completed.
  int outstanding() const;

  // Deltas since the last call, in order per sequence.
  std::vector<EngineDelta> TakeDeltas();
  // When the earliest deadline passes, if any sequence has one: call Plan() then.
  std::optional<TimeUs> NextDeadline() const;
  EngineStats stats() const;

  // What the prefix cache gained and lost since the last call, net per link, in order.
  CacheNews TakeCacheNews();
  // All links that were told as stored and not as evicted, or are about to be.
  std::vector<uint64_t> CachedLinks() const;

  // For tests and simulation: Internal, with a sentence about the first invariant that is broken.
  absl::Status Check() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_ENGINE_H_
