#include "shard_worker/service/convert.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

SamplingParams ToSampling(const v1::SamplingParams& proto) {
  SamplingParams sampling;
  if (proto.has_temperature()) sampling.temperature = proto.temperature();
  if (proto.has_top_k()) sampling.top_k = proto.top_k();
  if (proto.has_top_p()) sampling.top_p = proto.top_p();
  if (proto.has_min_p()) sampling.min_p = proto.min_p();
  if (proto.has_repetition_penalty()) sampling.repetition_penalty = proto.repetition_penalty();
  if (proto.has_presence_penalty()) sampling.presence_penalty = proto.presence_penalty();
  if (proto.has_frequency_penalty()) sampling.frequency_penalty = proto.frequency_penalty();
  sampling.logit_bias.assign(proto.logit_bias().begin(), proto.logit_bias().end());
  std::sort(sampling.logit_bias.begin(), sampling.logit_bias.end());
  return sampling;
}

// Deadlines beyond this are as good as none, and the addition cannot overflow.
constexpr int64_t kRemainingMaxUs = std::numeric_limits<int64_t>::max() / 4;
constexpr int64_t kProfileMaxUs = int64_t{3600} * 1'000'000;

v1::FinishReason ToProto(EngineFinish finish) {
  switch (finish) {
    case EngineFinish::kStopToken:
      return v1::FINISH_REASON_STOP;
    case EngineFinish::kLength:
      return v1::FINISH_REASON_LENGTH;
    case EngineFinish::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case EngineFinish::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case EngineFinish::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

void AddToken(const ScoredToken& token,
              google::protobuf::RepeatedPtrField<v1::OutputToken>* tokens) {
  v1::OutputToken* proto = tokens->Add();
  proto->set_id(token.id);
  proto->set_logprob(token.logprob);
  for (const auto& [id, logprob] : token.top) {
    v1::TokenLogprob* top = proto->add_top();
    top->set_id(id);
    top->set_logprob(logprob);
  }
}

v1::SequenceDelta ToProto(const EngineDelta& delta, uint64_t sequence) {
  v1::SequenceDelta proto;
  proto.set_sequence(sequence);
  proto.set_offset(delta.offset);
  for (const ScoredToken& token : delta.tokens) AddToken(token, proto.mutable_tokens());
  for (const ScoredToken& token : delta.prompt) AddToken(token, proto.mutable_prompt());
  proto.set_prompt_offset(delta.prompt_offset);
  if (!delta.finish) return proto;
  proto.set_finish(ToProto(*delta.finish));
  proto.set_cached_tokens(delta.cached_tokens);
  proto.set_queue_us(delta.queue_us);
  proto.set_prefill_us(delta.prefill_us);
  proto.set_decode_us(delta.decode_us);
  proto.set_logits_sha256(delta.logits_sha256);
  if (delta.finish == EngineFinish::kError) {
    proto.set_error(delta.error);
    proto.set_error_code(static_cast<int>(absl::StatusCode::kInternal));
  }
  return proto;
}

// The end of a sequence that was never taken in.
v1::SequenceDelta RefusalDelta(uint64_t sequence, const absl::Status& status) {
  v1::SequenceDelta proto;
  proto.set_sequence(sequence);
  proto.set_finish(v1::FINISH_REASON_ERROR);
  proto.set_error(MessageOf(status));
  proto.set_error_code(static_cast<int>(status.code()));  // absl's codes are gRPC's
  return proto;
}

v1::LeaderState ToProto(const LeaderState& state) {
  v1::LeaderState proto;
  proto.set_running(state.running);
  proto.set_waiting(state.waiting);
  proto.set_kv_tokens_used(state.kv_tokens_used);
  proto.set_kv_tokens_total(state.kv_tokens_total);
  proto.set_credit_tokens(state.credit_tokens);
  proto.set_submits_received(state.submits_received);
  proto.set_prompt_tokens_done(state.prompt_tokens_done);
  proto.set_output_tokens_done(state.output_tokens_done);
  proto.set_draining(state.draining);
  proto.set_pending_prompt_tokens(state.pending_prompt_tokens);
  proto.set_prefill_tokens_per_s(state.prefill_tokens_per_s);
  proto.set_block_tokens(state.block_tokens);
  proto.set_epoch(state.epoch);
  proto.set_slots(state.slots);
  return proto;
}

v1::CacheNews ToProto(const CachePart& part) {
  v1::CacheNews proto;
  proto.set_reset(part.reset);
  proto.mutable_stored()->Add(part.stored.begin(), part.stored.end());
  proto.mutable_evicted()->Add(part.evicted.begin(), part.evicted.end());
  return proto;
}

}  // namespace

EngineRequest ToRequest(const v1::Submit& submit, TimeUs received) {
  EngineRequest request;
  request.tokens.assign(submit.tokens().begin(), submit.tokens().end());
  request.prompt_length = submit.prompt_length();
  request.sampling = ToSampling(submit.sampling());
  request.seed = submit.seed();
  request.max_tokens = submit.max_tokens();
  request.stop_token_ids.assign(submit.stop_token_ids().begin(), submit.stop_token_ids().end());
  if (submit.has_logprobs()) request.logprobs = submit.logprobs();
  request.prompt_logprobs = submit.prompt_logprobs();
  request.logits_digest = submit.logits_digest();
  request.cache_salt = submit.cache_salt();
  request.cache_salt = submit.cache_salt();
  if (submit.remaining_us() != 0) {
    request.deadline = received + std::clamp<int64_t>(submit.remaining_us(), 0, kRemainingMaxUs);
  }
  return request;
}

v1::LeaderMessage ToProto(const SessionNews& news) {
  v1::LeaderMessage message;
  for (const SequenceNews& sequence : news.sequences) {
    *message.add_deltas() = sequence.refusal.ok() ? ToProto(sequence.delta, sequence.number)
                                                  : RefusalDelta(sequence.number, sequence.refusal);
  }
  *message.mutable_state() = ToProto(news.state);
  if (news.cache) *message.mutable_cache() = ToProto(*news.cache);
  return message;
}

void MergeDelta(v1::SequenceDelta* into, v1::SequenceDelta&& next) {
  if (into->prompt().empty()) into->set_prompt_offset(next.prompt_offset());
  for (v1::OutputToken& token : *next.mutable_tokens()) into->add_tokens()->Swap(&token);
  for (v1::OutputToken& token : *next.mutable_prompt()) into->add_prompt()->Swap(&token);
  if (next.finish() == v1::FINISH_REASON_UNSPECIFIED) return;
  into->set_finish(next.finish());
  into->set_cached_tokens(next.cached_tokens());
  into->set_queue_us(next.queue_us());
  into->set_prefill_us(next.prefill_us());
  into->set_decode_us(next.decode_us());
  into->set_logits_sha256(next.logits_sha256());
  into->set_error(next.error());
  into->set_error_code(next.error_code());
}

v1::ModelInfo ToProto(const ModelFacts& facts) {
  v1::ModelInfo info;
  info.set_architecture(facts.architecture);
  info.set_description(facts.description);
  info.set_parameters(facts.parameters);
  info.set_context_tokens(facts.context_tokens);
  info.set_vocabulary_size(facts.vocabulary_size);
  info.set_digest(facts.digest);
  info.set_fingerprint(facts.fingerprint);
  return info;
}

v1::StepProfile ToProto(const StepProfile& profile) {
  v1::StepProfile proto;
  proto.set_steps(profile.steps);
  proto.set_rows(profile.rows);
  proto.set_seconds(profile.seconds);
  for (int i = 0; i < kStepOperations; ++i) {
    const auto operation = static_cast<StepOperation>(i);
    const OperationTotals& totals = profile[operation];
    v1::OperationTotals& out = *proto.add_operations();
    out.set_name(std::string(NameOf(operation)));
    out.set_calls(totals.calls);
    out.set_seconds(totals.seconds);
    out.set_bytes(totals.bytes);
    out.set_operations(totals.operations);
  }
  return proto;
}

TimeUs ProfileEnd(int64_t profile_us, TimeUs received) {
  return profile_us <= 0 ? 0 : received + std::min(profile_us, kProfileMaxUs);
}

}  // namespace facet
