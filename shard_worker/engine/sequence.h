#ifndef FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_
#define FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "shard_worker/engine/block_manager.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/engine/prompt_lookup.h"

namespace facet {

// One sequence inside the engine, which owns it; the scheduler borrows it and alone writes the
// fields of the second group.
struct Sequence {
  EngineRequest request;  // request.tokens grows with the output

  uint64_t arrival = 0;       // smaller is older
  SlotId slot{-1};            // while running
  int64_t computed = 0;       // leading tokens whose keys are stored
  int64_t in_flight = 0;      // tokens after those in outstanding steps
  int samples_in_flight = 0;  // tokens that outstanding steps choose: known when they complete
  int planned = 0;            // tokens after those in the step being made
  PromptLookup lookup;        // of what follows the tokens
  int proposals = 0;          // of its guess, after the tokens that are planned or in flight
  BlockTable table;
  std::vector<uint64_t> links;  // of the whole blocks of request.tokens, as far as needed
  Sequence* leader = nullptr;   // an older running sequence that computes a shared prefix
  int expected = 0;             // blocks of that prefix
  bool follows = false;         // waits for the leader in the step being made
  int preemptions = 0;
  int output_when_preempted = 0;
  int64_t prompt_seen = 0;    // leading prompt tokens that were computed or cached once
  int64_t cached_tokens = 0;  // of them, those that were cached

  bool started = false;   // the executor knows the slot's sequence
  int prompt_scored = 1;  // first prompt position whose log-probability was not yet reported
  TimeUs submitted = 0;
  std::optional<TimeUs> first_planned, first_token;

  int64_t size() const { return static_cast<int64_t>(request.tokens.size()); }
  int output() const { return static_cast<int>(size()) - request.prompt_length; }
  // Where the step being made goes on.
  int64_t next() const { return computed + in_flight; }
  // Tokens that it has to compute, those included that are only being sampled.
  int64_t pending() const { return size() + samples_in_flight - next(); }
  // The step being made computes the last pending token and more output is wanted.
  bool samples() const {
    return planned == pending() && output() + samples_in_flight < request.max_tokens;
  }
  PrefixKey key() const {
    return {request.cache_salt, request.tokens, links, request.prompt_length};
  }
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_
