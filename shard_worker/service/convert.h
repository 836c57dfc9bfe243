#ifndef FACET_SHARD_WORKER_SERVICE_CONVERT_H_
#define FACET_SHARD_WORKER_SERVICE_CONVERT_H_

// Between the protocol's messages and the engine's types. Checks nothing: the engine does.

#include "absl/status/status.h"
#include "facet/v1/shard.pb.h"
#include "shard_worker/engine/engine.h"
#include "shard_worker/runtime/rank.h"

namespace facet {

// `received`: when the message came; its remaining time counts from there.
EngineRequest ToRequest(const v1::Submit& submit, SequenceId id, TimeUs received);

// `sequence`: the router's number.
v1::SequenceDelta ToProto(const EngineDelta& delta, uint64_t sequence);
// The end of a sequence that was never taken in.
v1::SequenceDelta RefusalDelta(uint64_t sequence, const absl::Status& status);
// Appends `next`, the news that follows `into` of the same sequence.
void MergeDelta(v1::SequenceDelta* into, v1::SequenceDelta&& next);

v1::ModelInfo ToProto(const ModelFacts& facts);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_CONVERT_H_
