#ifndef FACET_SHARD_WORKER_SERVICE_CONVERT_H_
#define FACET_SHARD_WORKER_SERVICE_CONVERT_H_

// Between the protocol's messages and the engine's types. Checks nothing: the engine does.

#include "facet/v1/shard.pb.h"
#include "shard_worker/engine/leader_core.h"
#include "shard_worker/runtime/rank.h"

namespace facet {

// `received`: when the message came; its remaining time counts from there. The id is left to
// the leader's core.
EngineRequest ToRequest(const v1::Submit& submit, TimeUs received);

// Without what is the same for all sessions: model, ranks, device.
v1::LeaderMessage ToProto(const SessionNews& news);
// Appends `next`, the news that follows `into` of the same sequence.
void MergeDelta(v1::SequenceDelta* into, v1::SequenceDelta&& next);

v1::ModelInfo ToProto(const ModelFacts& facts);

v1::StepProfile ToProto(const StepProfile& profile);
// When a profile asked for in `profile_us` ends; 0: it is over. A wild duration is cut to an hour.
TimeUs ProfileEnd(int64_t profile_us, TimeUs received);

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_CONVERT_H_
