#include "tests/simulation/messages.h"

#include <algorithm>

#include "base/status.h"

namespace facet::sim {
namespace {

std::vector<OutputToken> ToOutput(const std::vector<ScoredToken>& tokens) {
  std::vector<OutputToken> output;
  output.reserve(tokens.size());
  for (const ScoredToken& token : tokens) output.push_back({token.id, token.logprob, token.top});
  return output;
}

EndReason ToReason(EngineFinish finish) {
  switch (finish) {
    case EngineFinish::kStopToken:
      return EndReason::kStop;
    case EngineFinish::kLength:
      return EndReason::kLength;
    case EngineFinish::kCancelled:
      return EndReason::kCancelled;
    case EngineFinish::kDeadline:
      return EndReason::kDeadline;
    case EngineFinish::kError:
      return EndReason::kError;
  }
  return EndReason::kError;
}

}  // namespace

RouterRequest ToRouterRequest(const Call& call, TimeUs now) {
  const RequestPlan& plan = *call.plan;
  RouterRequest request;
  request.client_id = call.client_id;
  request.tenant = plan.tenant;
  request.priority = plan.priority;
  for (const std::vector<TokenId>& prompt : plan.prompts) {
    request.prompts.push_back({prompt, plan.max_tokens});
  }
  request.n = plan.n;
  request.seed = plan.seed;
  request.prompt_logprobs = call.prompt_logprobs;
  if (call.remaining != kNever) request.deadline = now + call.remaining;
  request.resume = call.resume;
  request.takes_over = call.takes_over;
  request.params = std::make_shared<SimParams>(plan);
  return request;
}

EngineRequest ToEngineRequest(const SubmitAction& submit, TimeUs sent, TimeUs now) {
  const RequestPlan& plan = static_cast<const SimParams&>(*submit.params).plan;
  EngineRequest request;
  request.tokens = submit.tokens;
  request.prompt_length = submit.prompt_length;
  if (plan.penalties) request.sampling.repetition_penalty = 1.5f;
  request.seed = submit.seed;
  request.max_tokens = submit.max_tokens;
  request.stop_token_ids = plan.stop_token_ids;
  request.logprobs = plan.logprobs;
  request.prompt_logprobs = submit.prompt_logprobs;
  request.cache_salt = submit.cache_salt;
  // Deadlines travel as what remained when the message was sent.
  if (submit.deadline != kNever) {
    request.deadline = now + std::max<TimeUs>(1, submit.deadline - sent);
  }
  return request;
}

LeaderDelta ToLeaderDelta(const SequenceNews& news) {
  LeaderDelta delta{.sequence = SequenceId{news.number}};
  if (!news.refusal.ok()) {
    delta.finish = EndReason::kError;
    delta.error = news.refusal;
    return delta;
  }
  const EngineDelta& from = news.delta;
  delta.offset = from.offset;
  delta.tokens = ToOutput(from.tokens);
  delta.prompt_offset = from.prompt_offset;
  delta.prompt = ToOutput(from.prompt);
  if (!from.finish) return delta;
  delta.finish = ToReason(*from.finish);
  if (from.finish == EngineFinish::kError) delta.error = Internal("{}", from.error);
  delta.cached_tokens = from.cached_tokens;
  delta.queue_us = from.queue_us;
  delta.prefill_us = from.prefill_us;
  delta.decode_us = from.decode_us;
  return delta;
}

GroupState ToGroupState(const LeaderState& state) {
  return {.running = state.running,
          .waiting = state.waiting,
          .credit_tokens = state.credit_tokens,
          .submits_received = state.submits_received,
          .draining = state.draining,
          .pending_prompt_tokens = state.pending_prompt_tokens,
          .prefill_tokens_per_s = state.prefill_tokens_per_s};
}

GroupCacheNews ToGroupCacheNews(const CachePart& part) {
  return {part.reset, part.stored, part.evicted};
}

}  // namespace facet::sim
