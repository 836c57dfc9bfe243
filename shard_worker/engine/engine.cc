#include "shard_worker/engine/engine.h"

#include <algorithm>
#include <deque>
#include <iterator>
#include <set>
#include <span>
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

// Whether the planned segment must score the tokens that follow its own. A digest needs the
// logits of every position, and a segment that does not sample computes none otherwise.
bool WantsScores(const Sequence& sequence) {
  const int64_t next = sequence.next() + 1;
  const int64_t end = next + sequence.planned;
  const EngineRequest& request = sequence.request;
  if (request.logits_digest) return next < sequence.size() || !sequence.samples();
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
  const auto first = static_cast<size_t>(sequence.next());
  const size_t end = first + static_cast<size_t>(sequence.planned);
  Segment segment;
  segment.slot = sequence.slot;
  segment.first_position = sequence.next();
  for (size_t i = first; i < end; ++i) {
    segment.tokens.push_back(i < tokens.size() ? tokens[i] : kSampledToken);
  }
  segment.proposals = sequence.proposals;
  const std::span<const TokenId> guess = sequence.lookup.guess();
  segment.tokens.insert(segment.tokens.end(), guess.begin(), guess.begin() + segment.proposals);
  segment.blocks = sequence.table.blocks;
  segment.sample = sequence.samples();
  segment.score_prompt = WantsScores(sequence);
  if (segment.score_prompt && end < tokens.size()) segment.next_prompt_token = tokens[end];
  return segment;
}

// What a segment of an outstanding step was planned for.
struct IssuedRow {
  Sequence* sequence;  // null: it has ended since, and nobody wants the result
  int64_t first = 0;
  int tokens = 0;     // proposals not counted
  int proposals = 0;  // behind them
  bool sample = false;
  bool scores = false;
};

struct IssuedStep {
  uint64_t step = 0;
  std::vector<IssuedRow> rows;  // as the plan's segments
};

}  // namespace

struct Engine::Impl {
  explicit Impl(const EngineOptions& engine_options)
      : options(engine_options), scheduler(engine_options) {
    FACET_CHECK(scheduler.context_tokens() > 0 && options.vocabulary_size > 0);
  }

  std::optional<EngineFinish> Ended(const Sequence& sequence) const;
  EngineDelta NewDelta(const Sequence& sequence) const;
  void Finish(Sequence* sequence, EngineFinish finish, EngineDelta delta, TimeUs now);
  void Forget(const Sequence* sequence);
  void Expire(TimeUs now);
  IssuedRow Issue(Sequence* sequence, TimeUs now, StepPlan* plan);
  void TakeResult(const IssuedRow& row, const SegmentResult& result, TimeUs now);
  void TakeTokens(const IssuedRow& row, const SegmentResult& result, EngineDelta* delta,
                  TimeUs now);
  void TakeScores(const IssuedRow& row, const SegmentResult& result, EngineDelta* delta);
  absl::Status CheckSteps() const;

  const EngineOptions options;
  Scheduler scheduler;
  std::unordered_map<SequenceId, std::unique_ptr<Sequence>> sequences;
  std::set<std::pair<TimeUs, SequenceId>> deadlines;
  std::deque<IssuedStep> outstanding;  // oldest first
  uint64_t step = 0;
  std::vector<EngineDelta> deltas;
  int64_t output_tokens_done = 0;
  int64_t expired_waiting = 0;
  int64_t expired_running = 0;
};

// Why a sequence has ended with the tokens it has, if it has.
std::optional<EngineFinish> Engine::Impl::Ended(const Sequence& sequence) const {
  const EngineRequest& request = sequence.request;
  const std::vector<TokenId>& stops = request.stop_token_ids;
  if (sequence.output() > 0 && std::count(stops.begin(), stops.end(), request.tokens.back())) {
    return EngineFinish::kStopToken;
  }
  if (sequence.output() >= request.max_tokens || sequence.size() >= scheduler.context_tokens()) {
    return EngineFinish::kLength;
  }
  return std::nullopt;
}

EngineDelta Engine::Impl::NewDelta(const Sequence& sequence) const {
  EngineDelta delta;
  delta.id = sequence.request.id;
  delta.offset = sequence.output();
  return delta;
}

// Ends `sequence`, which dies here, with `delta` as its last news. Its blocks and its slot are
// free at once, even if outstanding steps still write to them: steps run in order on every rank,
// so whoever gets a block writes to it after them, and reads only what it has written.
void Engine::Impl::Finish(Sequence* sequence, EngineFinish finish, EngineDelta delta, TimeUs now) {
  delta.finish = finish;
  delta.cached_tokens = static_cast<int>(sequence->cached_tokens);
  const TimeUs planned = sequence->first_planned.value_or(now);
  const TimeUs token = sequence->first_token.value_or(now);
  delta.queue_us = planned - sequence->submitted;
  delta.prefill_us = token - planned;
  delta.decode_us = now - token;
  deltas.push_back(std::move(delta));
  Forget(sequence);
  scheduler.Remove(sequence);
  sequences.erase(sequence->request.id);
}

void Engine::Impl::Forget(const Sequence* sequence) {
  const EngineRequest& request = sequence->request;
  if (request.deadline) deadlines.erase({*request.deadline, request.id});
  if (sequence->in_flight == 0) return;
  for (IssuedStep& issued : outstanding) {
    for (IssuedRow& row : issued.rows) {
      if (row.sequence == sequence) row.sequence = nullptr;
    }
  }
}

Engine::Engine(const EngineOptions& options) : impl_(std::make_unique<Impl>(options)) {}
Engine::~Engine() = default;

int Engine::context_tokens() const { return impl_->scheduler.context_tokens(); }

absl::Status Engine::Submit(EngineRequest request, TimeUs now) {
  FACET_RETURN_IF_ERROR(CheckRequest(request, impl_->options, context_tokens()));
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
  if (sequence->request.deadline) impl_->deadlines.emplace(*sequence->request.deadline, id);
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
  impl_->Finish(sequence, EngineFinish::kCancelled, impl_->NewDelta(*sequence), now);
}

void Engine::Impl::Expire(TimeUs now) {
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Sequence* sequence = sequences.at(deadlines.begin()->second).get();
    ++(sequence->slot.value < 0 ? expired_waiting : expired_running);
    Finish(sequence, EngineFinish::kDeadline, NewDelta(*sequence), now);
  }
}

// --- Steps.

std::optional<StepPlan> Engine::Plan(TimeUs now) {
  FACET_CHECK(outstanding() < impl_->options.steps_max, "{} steps are outstanding", outstanding());
  impl_->Expire(now);
  impl_->scheduler.Reserve(outstanding() > 0);
  StepPlan plan;
  IssuedStep issued;
  for (Sequence* sequence : impl_->scheduler.running()) {
    if (sequence->planned > 0) issued.rows.push_back(impl_->Issue(sequence, now, &plan));
  }
  if (plan.segments.empty()) return std::nullopt;
  plan.step = issued.step = ++impl_->step;
  plan.ends = impl_->scheduler.TakeEnds();
  impl_->outstanding.push_back(std::move(issued));
  return plan;
}

IssuedRow Engine::Impl::Issue(Sequence* sequence, TimeUs now, StepPlan* plan) {
  if (!std::exchange(sequence->started, true)) plan->starts.push_back(MakeStart(*sequence));
  if (!sequence->first_planned) sequence->first_planned = now;
  plan->segments.push_back(MakeSegment(*sequence));
  const Segment& segment = plan->segments.back();
  const IssuedRow row{sequence,          segment.first_position, sequence->planned,
                      segment.proposals, segment.sample,         segment.score_prompt};
  scheduler.Issued(sequence);
  return row;
}

StepPlan Engine::PlanIdle() {
  FACET_CHECK(outstanding() == 0, "{} steps are outstanding", outstanding());
  StepPlan plan;
  plan.step = ++impl_->step;
  plan.ends = impl_->scheduler.TakeEnds();
  return plan;
}

void Engine::Complete(const StepResult& result, TimeUs now) {
  FACET_CHECK(!impl_->outstanding.empty(), "no step is outstanding");
  const IssuedStep issued = std::move(impl_->outstanding.front());
  impl_->outstanding.pop_front();
  FACET_CHECK(result.step == issued.step, "step {} answers step {}", result.step, issued.step);
  FACET_CHECK(result.segments.size() == issued.rows.size());
  for (size_t i = 0; i < issued.rows.size(); ++i) {
    // Nobody else ends by taking a result, so the pointer is good.
    if (issued.rows[i].sequence == nullptr) continue;
    impl_->TakeResult(issued.rows[i], result.segments[i], now);
  }
}

int Engine::outstanding() const { return static_cast<int>(impl_->outstanding.size()); }

void Engine::Impl::TakeResult(const IssuedRow& row, const SegmentResult& result, TimeUs now) {
  Sequence* sequence = row.sequence;
  EngineDelta delta = NewDelta(*sequence);
  if (!result.finite) {
    delta.error = "the model's logits are not finite";
    return Finish(sequence, EngineFinish::kError, std::move(delta), now);
  }
  if (row.scores) TakeScores(row, result, &delta);
  const bool whole = row.first + row.tokens == sequence->size();
  if (row.sample) TakeTokens(row, result, &delta, now);
  scheduler.Computed(sequence, row.tokens, std::ssize(delta.tokens));
  if (const auto ended = whole ? Ended(*sequence) : std::nullopt) {
    delta.logits_sha256 = result.logits_sha256;
    return Finish(sequence, *ended, std::move(delta), now);
  }
  if (!delta.tokens.empty() || !delta.prompt.empty()) deltas.push_back(std::move(delta));
}

// Only the last of the tokens can end the sequence: proposals stop short of what could.
void Engine::Impl::TakeTokens(const IssuedRow& row, const SegmentResult& result, EngineDelta* delta,
                              TimeUs now) {
  Sequence* sequence = row.sequence;
  FACET_CHECK(!result.sampled.empty() && std::ssize(result.sampled) <= 1 + row.proposals);
  if (!sequence->first_token) sequence->first_token = now;
  for (const ScoredToken& token : result.sampled) sequence->request.tokens.push_back(token.id);
  delta->tokens = result.sampled;
  output_tokens_done += std::ssize(result.sampled);
}

// Keeps of the scores those of prompt tokens that were not reported before a preemption.
void Engine::Impl::TakeScores(const IssuedRow& row, const SegmentResult& result,
                              EngineDelta* delta) {
  Sequence* sequence = row.sequence;
  if (!sequence->request.prompt_logprobs) return;
  const int64_t first = row.first + 1;
  const int64_t end = std::min<int64_t>(first + row.tokens, sequence->request.prompt_length);
  FACET_CHECK(first + static_cast<int64_t>(result.prompt.size()) >= end);
  delta->prompt_offset = sequence->prompt_scored;
  for (; sequence->prompt_scored < end; ++sequence->prompt_scored) {
    delta->prompt.push_back(result.prompt[sequence->prompt_scored - first]);
  }
}

// --- News.

std::vector<EngineDelta> Engine::TakeDeltas() { return std::exchange(impl_->deltas, {}); }

std::optional<TimeUs> Engine::NextDeadline() const {
  if (impl_->deadlines.empty()) return std::nullopt;
  return impl_->deadlines.begin()->first;
}

CacheNews Engine::TakeCacheNews() { return impl_->scheduler.TakeCacheNews(); }

std::vector<uint64_t> Engine::CachedLinks() const {
  return impl_->scheduler.blocks().tree().Links();
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
    const KvPool& blocks = scheduler.blocks().pool(pool);
    stats.blocks_used[pool] = blocks.referenced();
    stats.blocks_cached[pool] = blocks.cached();
    stats.blocks_total[pool] = blocks.total();
  }
  stats.prompt_tokens_done = scheduler.prompt_tokens_done();
  stats.cached_tokens = scheduler.cached_tokens();
  stats.output_tokens_done = impl_->output_tokens_done;
  stats.proposed_tokens = scheduler.proposed_tokens();
  stats.accepted_tokens = scheduler.accepted_tokens();
  stats.preemptions = scheduler.preemptions();
  stats.expired_waiting = impl_->expired_waiting;
  stats.expired_running = impl_->expired_running;
  return stats;
}

absl::Status Engine::Check() const {
  FACET_RETURN_IF_ERROR(impl_->scheduler.Check());
  return impl_->CheckSteps();
}

absl::Status Engine::Impl::CheckSteps() const {
  const size_t known = scheduler.running().size() + scheduler.waiting().size();
  if (known != sequences.size()) {
    return Internal("{} sequences run or wait, {} are known", known, sequences.size());
  }
  std::unordered_map<const Sequence*, std::pair<int64_t, int>> in_flight;
  for (const IssuedStep& issued : outstanding) {
    for (const IssuedRow& row : issued.rows) {
      if (row.sequence == nullptr) continue;
      auto& [tokens, samples] = in_flight[row.sequence];
      if (row.first != row.sequence->computed + tokens) {
        return Internal("step {} computes position {} of sequence {} after {}", issued.step,
                        row.first, row.sequence->request.id.value, row.sequence->computed + tokens);
      }
      tokens += row.tokens;
      samples += row.sample;
    }
  }
  size_t with_deadline = 0;
  for (const auto& [id, sequence] : sequences) {
    const auto found = in_flight.find(sequence.get());
    const auto [tokens, samples] =
        found == in_flight.end() ? std::pair<int64_t, int>() : found->second;
    if (tokens != sequence->in_flight || samples != sequence->samples_in_flight) {
      return Internal("sequence {} has {} tokens in flight, the steps have {}", id.value,
                      sequence->in_flight, tokens);
    }
    with_deadline += sequence->request.deadline.has_value();
  }
  if (with_deadline != deadlines.size()) {
    return Internal("{} deadlines are known of {}", deadlines.size(), with_deadline);
  }
  return absl::OkStatus();
}

}  // namespace facet
