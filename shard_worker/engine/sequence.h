#ifndef FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_
#define FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_

#include <cstdint>
#include <optional>

#include "shard_worker/engine/block_manager.h"
#include "shard_worker/engine/engine.h"

namespace facet {

// One sequence inside the engine, which owns it; the scheduler borrows it and alone writes the
// fields of the second group.
struct Sequence {
  EngineRequest request;  // request.tokens grows with the output

  SlotId slot{-1};       // while running
  bool started = false;  // the executor knows the slot's sequence
  int64_t computed = 0;  // leading tokens whose keys are stored
  int planned = 0;       // tokens after those in the step being made or outstanding
  BlockTable table;

  int prompt_scored = 1;       // first prompt position whose log-probability was not yet reported
  int64_t prompt_counted = 0;  // prompt tokens in EngineStats::prompt_tokens_done
  std::optional<EngineFinish> ending;  // decided while a step was outstanding
  TimeUs submitted = 0;
  std::optional<TimeUs> first_planned, first_token;

  int64_t size() const { return static_cast<int64_t>(request.tokens.size()); }
  int output() const { return static_cast<int>(size()) - request.prompt_length; }
  int64_t pending() const { return size() - computed; }
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_SEQUENCE_H_
