#include "shard_worker/engine/leader_core.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet {
namespace {

// What a step's share of the prefill rate is worth after each later one.
constexpr double kPrefillFade = 0.8;
// So many sequences of a session have a news period.
constexpr TimeUs kNewsPeriodSequences = 4;

LeaderRefusal ReasonOf(const absl::Status& status) {
  if (absl::IsResourceExhausted(status)) return LeaderRefusal::kQueueFull;
  if (absl::IsUnavailable(status)) return LeaderRefusal::kDraining;
  if (absl::IsUnimplemented(status)) return LeaderRefusal::kUnsupported;
  return LeaderRefusal::kInvalid;
}

}  // namespace

LeaderCore::LeaderCore(const LeaderCoreOptions& options, std::optional<CanaryAnswer> canary,
                       TimeUs now)
    : options_(options),
      engine_(options.engine),
      canary_(options.canary, options.engine.vocabulary_size, std::move(canary), now),
      last_asked_(now),
      last_moved_(now) {}

// --- Events.

void LeaderCore::Open(SessionId session) {
  const bool is_new =
      sessions_.try_emplace(session, options_.cache_links_max, engine_.CachedLinks()).second;
  FACET_CHECK(is_new, "session {} is not new", session.value);
}

void LeaderCore::Close(SessionId session, TimeUs now) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  for (const auto& [number, id] : found->second.sequences) {
    owners_.erase(id);
    engine_.Cancel(id, now);
  }
  sessions_.erase(found);
}

absl::Status LeaderCore::Submit(SessionId session, uint64_t number, EngineRequest request,
                                TimeUs now) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return absl::OkStatus();
  Session& s = found->second;
  ++s.submits_received;
  s.last_submit = now;
  if (s.sequences.count(number) > 0) {
    return InvalidArgument("sequence: {} is still running", number);
  }
  absl::Status status = Accept(session, &s, number, std::move(request), now);
  if (status.ok()) return status;
  ++refusals_[static_cast<size_t>(ReasonOf(status))];
  SequenceNews& news = s.news.emplace_back();
  news.number = number;
  news.refusal = std::move(status);
  s.urgent = true;
  return absl::OkStatus();
}

absl::Status LeaderCore::Accept(SessionId id, Session* session, uint64_t number,
                                EngineRequest request, TimeUs now) {
  if (drain_until_) return Unavailable("the leader is shutting down");
  if (request.logits_digest && !options_.allow_logits_digest) {
    return Unimplemented("logits_digest: this worker runs without --allow_logits_digest");
  }
  request.id = SequenceId{next_sequence_++};
  const SequenceId sequence = request.id;
  FACET_RETURN_IF_ERROR(engine_.Submit(std::move(request), now));
  session->sequences.emplace(number, sequence);
  owners_.emplace(sequence, Owner{id, number});
  return absl::OkStatus();
}

void LeaderCore::Cancel(SessionId session, uint64_t number, TimeUs now) {
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  const auto sequence = found->second.sequences.find(number);
  if (sequence != found->second.sequences.end()) engine_.Cancel(sequence->second, now);
}

void LeaderCore::Drain(TimeUs now) {
  if (!drain_until_) drain_until_ = now + options_.drain;
}

// --- Steps.

std::optional<TimeUs> LeaderCore::CanaryDue() const {
  return drain_until_ ? std::nullopt : canary_.due();
}

void LeaderCore::StartCanary(TimeUs now) {
  EngineRequest request = canary_.Start(SequenceId{next_sequence_++}, now);
  if (!engine_.Submit(std::move(request), now).ok()) canary_.Abandon(now);  // the queue is full
}

std::optional<StepPlan> LeaderCore::Plan(TimeUs now) {
  FACET_CHECK(outstanding() < options_.engine.steps_max);
  last_asked_ = now;
  if (const auto due = CanaryDue(); due && *due <= now) StartCanary(now);
  std::optional<StepPlan> plan = engine_.Plan(now);
  Collect(now);  // what it has ended
  if (!plan && steps_.empty() && now - last_moved_ >= options_.keep_alive) {
    plan = engine_.PlanIdle();
  }
  if (!plan) return plan;
  load_changed_ = load_changed_ || !plan->starts.empty() || !plan->ends.empty();
  if (steps_.empty()) last_moved_ = now;
  const size_t canaries = canary_.running() ? 1 : 0;
  steps_.push_back({now, plan->segments.empty(), plan->segments.size() > canaries});
  return plan;
}

void LeaderCore::Complete(const StepResult& result, TimeUs now) {
  FACET_CHECK(!steps_.empty());
  const Step step = steps_.front();
  steps_.pop_front();
  const TimeUs begun = std::max(step.planned, last_completed_);
  last_completed_ = last_moved_ = now;
  if (step.empty) return;
  last_step_us_ = now - begun;
  engine_.Complete(result, now);
  Collect(now);
  const EngineStats stats = engine_.stats();
  const int64_t prompt = stats.prompt_tokens_done - canary_.prompt_tokens();
  if (step.real) {
    canary_.RealProgress(now);
    CountPrefill(prompt - prompt_tokens_done_, now - begun);
  }
  prompt_tokens_done_ = std::max(prompt_tokens_done_, prompt);
  output_tokens_done_ = stats.output_tokens_done - canary_.output_tokens();
}

void LeaderCore::Moved(TimeUs now) {
  if (!steps_.empty()) last_moved_ = now;
}

void LeaderCore::CountPrefill(int64_t tokens, TimeUs duration) {
  if (tokens <= 0) return;
  prefill_tokens_ = prefill_tokens_ * kPrefillFade + static_cast<double>(tokens);
  prefill_us_ = prefill_us_ * kPrefillFade + static_cast<double>(std::max<TimeUs>(1, duration));
}

// --- News.

void LeaderCore::Collect(TimeUs now) {
  for (EngineDelta& delta : engine_.TakeDeltas()) {
    if (canary_.id() == delta.id) {
      canary_.Take(delta, now);
      continue;
    }
    if (delta.finish) ++finishes_[static_cast<size_t>(*delta.finish)];
    const auto found = owners_.find(delta.id);
    if (found == owners_.end()) continue;  // its session has gone
    const Owner owner = found->second;
    Session& session = sessions_.at(owner.session);
    const bool begins = !owner.begun && !delta.tokens.empty();
    session.urgent = session.urgent || begins || delta.finish.has_value();
    found->second.begun = owner.begun || begins;
    if (delta.finish) {
      session.sequences.erase(owner.number);
      owners_.erase(found);
    }
    session.news.push_back({owner.number, std::move(delta), absl::OkStatus()});
  }
}

std::vector<SessionNews> LeaderCore::TakeNews(TimeUs now) {
  last_taken_ = now;
  load_changed_ = false;
  Collect(now);
  const CacheNews cache = engine_.TakeCacheNews();
  const EngineStats stats = engine_.stats();
  const int64_t room = Room(stats);
  const auto competitors = std::count_if(sessions_.begin(), sessions_.end(),
                                         [&](const auto& s) { return Competes(s.second, now); });
  std::vector<SessionNews> all;
  for (auto& [id, session] : sessions_) {
    session.cache.Add(cache);
    const int64_t credit = Share(Competes(session, now), static_cast<int>(competitors), room);
    if (Due(session, credit, now)) {
      SessionNews& news = all.emplace_back(Tell(&session, credit, now));
      news.session = id;
      news.state = CommonState(stats);
      news.state.credit_tokens = credit;
      news.state.submits_received = session.submits_received;
    }
    // Tokens of steps that are long enough are due when they come.
    session.awaits_news = !session.news.empty() || last_step_us_ < NewsPeriod(session);
  }
  return all;
}

SessionNews LeaderCore::Tell(Session* session, int64_t credit, TimeUs now) const {
  SessionNews news;
  news.first = !session->told.has_value();
  news.sequences = std::exchange(session->news, {});
  if (!session->cache.empty()) news.cache = session->cache.Take();
  session->urgent = false;
  session->told = now;
  session->told_credit = credit;
  session->told_draining = drain_until_.has_value();
  return news;
}

bool LeaderCore::Due(const Session& session, int64_t credit, TimeUs now) const {
  return NewsDue(session, now) || session.cache.full() || StateDue(session) <= now ||
         (session.told_credit == 0 && credit > 0) ||
         session.told_draining != drain_until_.has_value();
}

bool LeaderCore::NewsDue(const Session& session, TimeUs now) const {
  return !session.news.empty() && (session.urgent || NewsDueAt(session) <= now);
}

TimeUs LeaderCore::NewsPeriod(const Session& session) const {
  const auto sequences = static_cast<TimeUs>(session.sequences.size());
  const TimeUs grown = options_.news_period * sequences / kNewsPeriodSequences;
  return std::max(options_.news_period, std::min(options_.news_period_max, grown));
}

TimeUs LeaderCore::NewsDueAt(const Session& session) const {
  return session.told ? *session.told + NewsPeriod(session) : 0;
}

bool LeaderCore::HasNews(TimeUs now) const {
  return load_changed_ || std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& each) {
           const Session& session = each.second;
           return NewsDue(session, now) || (!session.news.empty() && !session.awaits_news);
         });
}

TimeUs LeaderCore::StateDue(const Session& session) const {
  return session.told ? *session.told + options_.state_period : 0;
}

LeaderState LeaderCore::CommonState(const EngineStats& stats) const {
  const int pool = stats.blocks_total[0] > 0 ? 0 : 1;
  LeaderState state;
  state.running = stats.running;
  state.waiting = stats.waiting;
  state.kv_tokens_used = int64_t{stats.blocks_used[pool]} * options_.engine.block_tokens;
  state.kv_tokens_total = int64_t{stats.blocks_total[pool]} * options_.engine.block_tokens;
  state.prompt_tokens_done = prompt_tokens_done_;
  state.output_tokens_done = output_tokens_done_;
  state.pending_prompt_tokens = stats.pending_prompt_tokens;
  state.prefill_tokens_per_s = prefill_us_ > 0 ? prefill_tokens_ * 1e6 / prefill_us_ : 0;
  state.block_tokens = options_.engine.block_tokens;
  state.slots = options_.engine.sequences_max;
  state.epoch = options_.epoch;
  state.draining = drain_until_.has_value();
  return state;
}

// --- Credit. One step budget of prompt tokens that have not begun may lie here, which is what the
// next step can take in; the rest waits in the routers, where fairness and deadlines are decided.
// While every slot is taken, a prompt could not begin: none.

int64_t LeaderCore::Room(const EngineStats& stats) const {
  if (drain_until_ || stats.waiting >= options_.engine.waiting_max) return 0;
  if (stats.running + stats.waiting >= options_.engine.sequences_max) return 0;
  const EngineOptions& engine = options_.engine;
  const int budget = stats.running > 0 ? std::min(engine.step_tokens_max, engine.mixed_prefill_max)
                                       : engine.step_tokens_max;
  return std::max<int64_t>(0, budget - stats.waiting_tokens);
}

bool LeaderCore::Competes(const Session& session, TimeUs now) const {
  return !session.sequences.empty() ||
         (session.last_submit && now - *session.last_submit < options_.recent);
}

// The sessions that send share the room evenly. The others may begin, with a prompt of any length,
// and compete from then on; where nobody sends, all may as much as if all did.
int64_t LeaderCore::Share(bool competes, int competitors, int64_t room) const {
  if (room == 0) return 0;
  if (competitors > 0 && !competes) return 1;
  const int64_t sharers = competitors > 0 ? competitors : static_cast<int64_t>(sessions_.size());
  return (room + sharers - 1) / sharers;
}

// --- Time.

TimeUs LeaderCore::NextWake() const {
  TimeUs wake = std::numeric_limits<TimeUs>::max();
  for (const auto& [id, session] : sessions_) {
    wake = std::min(wake, StateDue(session));
    // If there are none by then, they are due when a step brings them.
    const TimeUs news_due = NewsDueAt(session);
    if (session.awaits_news && !session.sequences.empty() && news_due > last_taken_) {
      wake = std::min(wake, news_due);
    }
  }
  if (drain_until_) wake = std::min(wake, *drain_until_);
  if (outstanding() >= options_.engine.steps_max) return wake;
  // What passed before the last Plan() was seen there; it ends when its step is complete.
  const std::optional<TimeUs> deadline = engine_.NextDeadline();
  if (deadline && *deadline > last_asked_) wake = std::min(wake, *deadline);
  if (const auto due = CanaryDue()) wake = std::min(wake, *due);
  if (steps_.empty()) wake = std::min(wake, last_moved_ + options_.keep_alive);
  return wake;
}

bool LeaderCore::Drained(TimeUs now) const {
  return drain_until_ && (owners_.empty() || now >= *drain_until_);
}

TimeUs LeaderCore::ready_until() const {
  if (!canary_.proven()) return 0;
  if (!steps_.empty()) return last_moved_ + options_.frozen;
  const TimeUs kept_alive = last_moved_ + options_.keep_alive + options_.frozen;
  const std::optional<TimeUs> due = CanaryDue();
  return due ? std::min(kept_alive, *due + options_.frozen) : kept_alive;
}

LeaderStats LeaderCore::stats() const {
  LeaderStats stats;
  stats.engine = engine_.stats();
  stats.prompt_tokens_done = prompt_tokens_done_;
  stats.output_tokens_done = output_tokens_done_;
  stats.refusals = refusals_;
  stats.finishes = finishes_;
  stats.canary = canary_.stats();
  stats.sessions = static_cast<int>(sessions_.size());
  return stats;
}

absl::Status LeaderCore::Check() const {
  FACET_RETURN_IF_ERROR(engine_.Check());
  if (outstanding() > options_.engine.steps_max) {
    return Internal("{} steps are outstanding; at most {} may", outstanding(),
                    options_.engine.steps_max);
  }
  size_t sequences = 0;
  for (const auto& [id, session] : sessions_) {
    sequences += session.sequences.size();
    for (const auto& [number, sequence] : session.sequences) {
      const auto owner = owners_.find(sequence);
      if (owner == owners_.end() || owner->second.session != id || owner->second.number != number) {
        return Internal("sequence {} of session {} has another owner", number, id.value);
      }
    }
  }
  if (sequences != owners_.size()) {
    return Internal("{} sequences have an owner, the sessions have {}", owners_.size(), sequences);
  }
  return absl::OkStatus();
}

}  // namespace facet
