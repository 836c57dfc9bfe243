#include "shard_worker/engine/engine.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "shard_worker/engine/request_check.h"
#include "shard_worker/engine/scheduler.h"
#include "shard_worker/engine/sequence.h"

namespace facet {
namespace {

bool HasPenalty(const SamplingParams& sampling) {
  return sampling.repetition_penalty != 1 || sampling.presence_penalty != 0 ||
         sampling.frequency_penalty != 0;
}

bool WantsSample(const Sequence& sequence) {
  return sequence.planned == sequence.pending() && sequence.output() < sequence.request.max_tokens;
}

// Whether the planned segment must score the tokens that follow its own. A digest needs the
// logits of every position, and a segment that does not sample computes none otherwise.
bool WantsScores(const Sequence& sequence) {
  const int64_t next = sequence.computed + 1;
  const int64_t end = next + sequence.planned;
  const EngineRequest& request = sequence.request;
  if (request.logits_digest) return next < sequence.size() || !WantsSample(sequence);
  return request.prompt_logprobs && next < request.prompt_length && end > sequence.prompt_scored;
}

SequenceStart MakeStart(const Sequence& sequence) {
  const EngineRequest& request = sequence.request;
  SequenceStart start;
  start.slot = sequence.slot;
  start.seed = request.seed;
  start.sampling = request.sampling;
  start.logprobs = request.logprobs;
  start.logits_digest = request.logits_digest;
  if (HasPenalty(request.sampling)) {
    start.history = request.tokens;
    start.prompt_length = request.prompt_length;
  }
  return start;
}

Segment MakeSegment(const Sequence& sequence) {
  const std::vector<TokenId>& tokens = sequence.request.tokens;
  const auto first = tokens.begin() + sequence.computed;
  Segment segment;
  segment.slot = sequence.slot;
  segment.first_position = sequence.computed;
  segment.tokens.assign(first, first + sequence.planned);
  segment.blocks = sequence.table.blocks;
  segment.sample = WantsSample(sequence);
  segment.score_prompt = WantsScores(sequence);
  if (segment.score_prompt && sequence.planned < sequence.pending()) {
    segment.next_prompt_token = first[sequence.planned];
  }
  return segment;
}

}  // namespace

struct Engine::Impl {
  explicit Impl(const EngineOptions& engine_options)
      : options(engine_options),
        scheduler(engine_options),
        context_tokens(
            static_cast<int>(scheduler.blocks().Capacity(engine_options.context_tokens))) {
    FACET_CHECK(context_tokens > 0 && options.vocabulary_size > 0);
  }

  // Why a sequence has ended with the tokens it has, if it has.
  std::optional<EngineFinish> Ended(const Sequence& sequence) const {
    const EngineRequest& request = sequence.request;
    const std::vector<TokenId>& stops = request.stop_token_ids;
    if (sequence.output() > 0 && std::count(stops.begin(), stops.end(), request.tokens.back())) {
      return EngineFinish::kStopToken;
    }
    if (sequence.output() >= request.max_tokens || sequence.size() >= context_tokens) {
      return EngineFinish::kLength;
    }
    return std::nullopt;
  }

  EngineDelta NewDelta(const Sequence& sequence) const {
    EngineDelta delta;
    delta.id = sequence.request.id;
    delta.offset = sequence.output();
    return delta;
  }

  // Ends `sequence`, which dies here, with `delta` as its last news.
  void Finish(Sequence* sequence, EngineFinish finish, EngineDelta delta, TimeUs now) {
    delta.finish = finish;
    const TimeUs planned = sequence->first_planned.value_or(now);
    const TimeUs token = sequence->first_token.value_or(now);
    delta.queue_us = planned - sequence->submitted;
    delta.prefill_us = token - planned;
    delta.decode_us = now - token;
    deltas.push_back(std::move(delta));
    scheduler.Remove(sequence);
    sequences.erase(sequence->request.id);
  }

  void Expire(TimeUs now);
  void TakeResult(Sequence* sequence, const SegmentResult& result, TimeUs now);
  void TakeToken(Sequence* sequence, const SegmentResult& result, EngineDelta* delta, TimeUs now);
  void CountPrompt(Sequence* sequence);
  void TakeScores(Sequence* sequence, const SegmentResult& result, EngineDelta* delta);

  const EngineOptions options;
  Scheduler scheduler;
  const int context_tokens;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::vector<Sequence*> outstanding;  // in the order of the plan's segments
  uint64_t step = 0;
  std::vector<EngineDelta> deltas;
  int64_t prompt_tokens_done = 0;
  int64_t output_tokens_done = 0;
  int64_t expired_waiting = 0;
  int64_t expired_running = 0;
};

Engine::Engine(const EngineOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Engine::~Engine() = default;

int Engine::context_tokens() const { return impl_->context_tokens; }

absl::Status Engine::Submit(EngineRequest request, TimeUs now) {
  FACET_RETURN_IF_ERROR(CheckRequest(request, impl_->options, impl_->context_tokens));
  const int waiting = static_cast<int>(impl_->scheduler.waiting().size());
  if (waiting >= impl_->options.waiting_max) {
    return ResourceExhausted("{} sequences wait already; at most {} may", waiting,
                             impl_->options.waiting_max);
  }
  auto owned = std::make_unique<Sequence>();
  Sequence* sequence = owned.get();
  sequence->request = std::move(request);
  sequence->submitted = now;
  const SequenceId id = sequence->request.id;
  FACET_CHECK(impl_->sequences.emplace(id, std::move(owned)).second, "sequence {} is not new",
              id.value);
  impl_->scheduler.Add(sequence);
  // A resubmission of a stream that had its last token and lost only the news of its end.
  if (sequence->output() == 0) return absl::OkStatus();
  if (std::optional<EngineFinish> ended = impl_->Ended(*sequence)) {
    impl_->Finish(sequence, *ended, impl_->NewDelta(*sequence), now);
  }
  return absl::OkStatus();
}

void Engine::Cancel(SequenceId id, TimeUs now) {
  const auto found = impl_->sequences.find(id);
  if (found == impl_->sequences.end()) return;
  Sequence* sequence = found->second.get();
  if (sequence->planned > 0) {  // the step writes to its blocks
    sequence->ending = EngineFinish::kCancelled;
  } else {
    impl_->Finish(sequence, EngineFinish::kCancelled, impl_->NewDelta(*sequence), now);
  }
}

void Engine::Impl::Expire(TimeUs now) {
  std::vector<Sequence*> expired;
  const auto look = [&](Sequence* sequence) {
    const std::optional<TimeUs>& deadline = sequence->request.deadline;
    if (deadline && *deadline <= now) expired.push_back(sequence);
  };
  std::for_each(scheduler.running().begin(), scheduler.running().end(), look);
  std::for_each(scheduler.waiting().begin(), scheduler.waiting().end(), look);
  for (Sequence* sequence : expired) {
    ++(sequence->slot.value < 0 ? expired_waiting : expired_running);
    Finish(sequence, EngineFinish::kDeadline, NewDelta(*sequence), now);
  }
}

std::optional<StepPlan> Engine::Plan(TimeUs now) {
  FACET_CHECK(outstanding() < impl_->options.steps_max, "a step is outstanding");
  if (outstanding() > 0) return std::nullopt;
  impl_->Expire(now);
  impl_->scheduler.Reserve();
  StepPlan plan;
  for (Sequence* sequence : impl_->scheduler.running()) {
    if (sequence->planned == 0) continue;
    if (!std::exchange(sequence->started, true)) plan.starts.push_back(MakeStart(*sequence));
    if (!sequence->first_planned) sequence->first_planned = now;
    plan.segments.push_back(MakeSegment(*sequence));
    impl_->outstanding.push_back(sequence);
  }
  if (plan.segments.empty()) return std::nullopt;
  plan.step = ++impl_->step;
  plan.ends = impl_->scheduler.TakeEnds();
  return plan;
}

StepPlan Engine::PlanIdle() {
  FACET_CHECK(impl_->outstanding.empty(), "a step is outstanding");
  StepPlan plan;
  plan.step = ++impl_->step;
  plan.ends = impl_->scheduler.TakeEnds();
  return plan;
}

void Engine::Complete(const StepResult& result, TimeUs now) {
  const std::vector<Sequence*> outstanding = std::exchange(impl_->outstanding, {});
  FACET_CHECK(!outstanding.empty() && result.step == impl_->step, "step {} answers step {}",
              result.step, impl_->step);
  FACET_CHECK(result.segments.size() == outstanding.size());
  for (size_t i = 0; i < outstanding.size(); ++i) {
    impl_->TakeResult(outstanding[i], result.segments[i], now);
  }
}

void Engine::Impl::TakeResult(Sequence* sequence, const SegmentResult& result, TimeUs now) {
  EngineDelta delta = NewDelta(*sequence);
  if (!result.finite && !sequence->ending) {
    sequence->ending = EngineFinish::kError;
    delta.error = "the model's logits are not finite";
  }
  if (sequence->ending) return Finish(sequence, *sequence->ending, std::move(delta), now);

  TakeScores(sequence, result, &delta);
  const bool whole = sequence->planned == sequence->pending();
  const bool sampled = WantsSample(*sequence);
  scheduler.Computed(sequence);
  CountPrompt(sequence);
  if (sampled) TakeToken(sequence, result, &delta, now);
  if (const auto ended = whole ? Ended(*sequence) : std::nullopt) {
    delta.logits_sha256 = result.logits_sha256;
    return Finish(sequence, *ended, std::move(delta), now);
  }
  if (!delta.tokens.empty() || !delta.prompt.empty()) deltas.push_back(std::move(delta));
}

void Engine::Impl::TakeToken(Sequence* sequence, const SegmentResult& result, EngineDelta* delta,
                             TimeUs now) {
  FACET_CHECK(result.sampled.has_value());
  if (!sequence->first_token) sequence->first_token = now;
  sequence->request.tokens.push_back(result.sampled->id);
  delta->tokens.push_back(*result.sampled);
  ++output_tokens_done;
}

void Engine::Impl::CountPrompt(Sequence* sequence) {
  const int64_t done = std::min<int64_t>(sequence->computed, sequence->request.prompt_length);
  if (done <= sequence->prompt_counted) return;
  prompt_tokens_done += done - sequence->prompt_counted;
  sequence->prompt_counted = done;
}

// Keeps of the scores those of prompt tokens that were not reported before a preemption.
void Engine::Impl::TakeScores(Sequence* sequence, const SegmentResult& result, EngineDelta* delta) {
  const EngineRequest& request = sequence->request;
  if (!request.prompt_logprobs || !WantsScores(*sequence)) return;
  const int64_t first = sequence->computed + 1;
  const int64_t end = std::min<int64_t>(
      {first + sequence->planned, sequence->size(), int64_t{request.prompt_length}});
  FACET_CHECK(first + static_cast<int64_t>(result.prompt.size()) >= end);
  delta->prompt_offset = sequence->prompt_scored;
  for (; sequence->prompt_scored < end; ++sequence->prompt_scored) {
    delta->prompt.push_back(result.prompt[sequence->prompt_scored - first]);
  }
}

std::vector<EngineDelta> Engine::TakeDeltas() { return std::exchange(impl_->deltas, {}); }

std::optional<TimeUs> Engine::NextDeadline() const {
  std::optional<TimeUs> earliest;
  for (const auto& [id, sequence] : impl_->sequences) {
    const std::optional<TimeUs>& deadline = sequence->request.deadline;
    if (deadline && (!earliest || *deadline < *earliest)) earliest = deadline;
  }
  return earliest;
}

int Engine::outstanding() const { return impl_->outstanding.empty() ? 0 : 1; }

// Nothing is cached yet, so there are no news.
CacheNews Engine::TakeCacheNews() { return {}; }
std::vector<uint64_t> Engine::CachedLinks() const { return {}; }

absl::Status Engine::Check() const {
  const Scheduler& scheduler = impl_->scheduler;
  const size_t known = scheduler.running().size() + scheduler.waiting().size();
  if (known != impl_->sequences.size()) {
    return Internal("{} sequences run or wait, {} are known", known, impl_->sequences.size());
  }
  return absl::OkStatus();
}

EngineStats Engine::stats() const {
  const Scheduler& scheduler = impl_->scheduler;
  EngineStats stats;
  stats.running = static_cast<int>(scheduler.running().size());
  stats.waiting = static_cast<int>(scheduler.waiting().size());
  for (const Sequence* sequence : scheduler.waiting()) {
    stats.waiting_tokens += sequence->size();
    stats.pending_prompt_tokens += sequence->size();
  }
  for (const Sequence* sequence : scheduler.running()) {
    if (sequence->pending() > 1) stats.pending_prompt_tokens += sequence->pending();
  }
  for (int pool = 0; pool < kBlockPools; ++pool) {
    stats.blocks_used[pool] = scheduler.blocks().used(pool);
    stats.blocks_total[pool] = scheduler.blocks().total(pool);
  }
  stats.prompt_tokens_done = impl_->prompt_tokens_done;
  stats.output_tokens_done = impl_->output_tokens_done;
  stats.preemptions = scheduler.preemptions();
  stats.expired_waiting = impl_->expired_waiting;
  stats.expired_running = impl_->expired_running;
  return stats;
}

}  // namespace facet
