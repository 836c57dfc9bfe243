#include "shard_worker/service/engine_loop.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "base/status.h"
#include "serving/short_slices.h"
#include "shard_worker/service/convert.h"

namespace facet {

EngineLoop::EngineLoop(const EngineLoopOptions& options, std::optional<CanaryAnswer> canary,
                       Rank* rank, WorkerMetrics* metrics, Pulse* pulse,
                       std::function<void(bool)> on_ready)
    : options_(options),
      rank_(rank),
      metrics_(metrics),
      pulse_(pulse),
      on_ready_(std::move(on_ready)),
      core_(options.core, std::move(canary), SteadyNow()),
      context_tokens_(core_.context_tokens()),
      executor_(rank->MakeExecutor()) {}

EngineLoop::~EngineLoop() = default;

// --- Any thread.

absl::Status EngineLoop::Open(std::shared_ptr<RouterStream> stream) {
  const absl::MutexLock lock(&mutex_);
  if (!closed_.ok()) return closed_;
  if (draining_) return Unavailable("the leader is shutting down");
  if (streams_open_ >= options_.streams_max) {
    return ResourceExhausted("{} routers have a session already; at most {} may", streams_open_,
                             options_.streams_max);
  }
  ++streams_open_;
  incoming_.events.push_back({Event::kOpen, std::move(stream), {}, 0, 0});
  wake_ = true;
  return absl::OkStatus();
}

void EngineLoop::Add(Event event) {
  const absl::MutexLock lock(&mutex_);
  if (!closed_.ok()) return;
  incoming_.events.push_back(std::move(event));
  wake_ = true;
}

void EngineLoop::Post(std::shared_ptr<RouterStream> stream, v1::RouterMessage message,
                      int64_t bytes) {
  Add({Event::kMessage, std::move(stream), std::move(message), SteadyNow(), bytes});
}

void EngineLoop::Close(std::shared_ptr<RouterStream> stream) {
  Add({Event::kClose, std::move(stream), {}, 0, 0});
}

void EngineLoop::Drain() {
  const absl::MutexLock lock(&mutex_);
  draining_ = incoming_.drain = wake_ = true;
  ready_until_ = 0;
}

void EngineLoop::Fail(const Break& failure) {
  const absl::MutexLock lock(&mutex_);
  if (!incoming_.failure) incoming_.failure = failure;
  wake_ = true;
}

EngineLoop::Incoming EngineLoop::Take(TimeUs until) {
  const absl::Duration timeout = absl::Microseconds(std::max<TimeUs>(0, until - SteadyNow()));
  const absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&wake_), timeout);
  wake_ = false;
  return std::exchange(incoming_, {});
}

// --- The step thread.

void EngineLoop::OnStep(StepDone done) {
  if (done.rows > 0) metrics_->AddStep(done.seconds, done.rows);
  const bool go_on = done.last && done.result.ok();
  {
    const absl::MutexLock lock(&mutex_);
    incoming_.step.Update(done.result.status());
    if (done.result.ok()) results_.push_back(*std::move(done.result));
    if (!go_on) {
      wake_ = true;
      return;
    }
  }
  // Nothing is left to run: nobody else plans sooner.
  const absl::MutexLock core_lock(&core_mutex_);
  CompleteSteps();
  PlanSteps();
  if (!EngineIsWanted()) return;
  const absl::MutexLock lock(&mutex_);
  wake_ = true;
}

void EngineLoop::CompleteSteps() {
  std::deque<StepResult> results;
  {
    const absl::MutexLock lock(&mutex_);
    results.swap(results_);
  }
  for (const StepResult& result : results) core_.Complete(result, SteadyNow());
}

bool EngineLoop::EngineIsWanted() const {
  // Where steps follow each other, the engine thread sleeps until NextWake(), as it knows it from
  // its last look, unless there is something to tell or the end is near.
  const bool go_on = core_.outstanding() == options_.core.engine.steps_max &&
                     core_.sequences() > 0 && core_.verdict().ok();
  return !go_on || core_.HasNews(SteadyNow());
}

void EngineLoop::PlanSteps() {
  // After a wrong canary nothing of this epoch is worth computing.
  while (core_.verdict().ok() && core_.outstanding() < options_.core.engine.steps_max) {
    std::optional<StepPlan> plan = core_.Plan(SteadyNow());
    if (!plan) return;
    pipeline_->Push(*std::move(plan));
  }
}

// --- The engine thread.

EpochEnd EngineLoop::Run() {
  pipeline_ = std::make_unique<StepPipeline>(executor_.get(),
                                             [this](StepDone done) { OnStep(std::move(done)); });
  metrics_->BeginEpoch();
  SetProfiling(0);                                  // what an earlier epoch was asked
  PublishReadiness(LookAtCore(false).ready_until);  // the first canary waits for nobody
  std::optional<EpochEnd> end;
  {
    const ShortSlices slices;  // not the step thread's: that computes
    while (!end) end = Turn();
  }
  ready_until_ = 0;
  on_ready_(false);
  // First the routers hear of it, so that they can turn elsewhere; then what hangs is cut.
  EndStreams(end->status.ok() ? Unavailable("the leader is shutting down") : end->status);
  if (!end->status.ok()) rank_->Abort();
  pipeline_->Stop();
  return *std::move(end);
}

std::optional<EpochEnd> EngineLoop::Turn() {
  pulse_->Beat();
  Incoming incoming = Take(std::min(NextWake(), SteadyNow() + options_.wait_max));
  const auto broken = [&](const absl::Status& why, BreakCause cause, bool condemned) {
    return EpochEnd{Unavailable("epoch {:016x} broke: {}", options_.core.epoch, MessageOf(why)),
                    cause, condemned};
  };
  // Also where the epoch is over: who has just come must be told so by EndStreams().
  for (Event& event : incoming.events) Handle(event);
  // The rank that was lost explains more than the step that failed for it.
  if (incoming.failure) return broken(incoming.failure->status, incoming.failure->cause, false);
  if (!incoming.step.ok()) return broken(incoming.step, BreakCause::kStepFailed, false);
  if (profile_until_ > 0 && SteadyNow() >= profile_until_) SetProfiling(0);
  Look look = LookAtCore(incoming.drain);
  AddTimes();
  metrics_->SetStats(look.stats);  // before who is told looks
  if (!look.verdict.ok()) return broken(look.verdict, BreakCause::kStepFailed, true);
  Send(std::move(look.news));
  PublishReadiness(look.ready_until);
  if (look.drained) return EpochEnd{};
  return std::nullopt;
}

TimeUs EngineLoop::NextWake() const {
  const absl::MutexLock lock(&core_mutex_);
  return core_.NextWake();
}

EngineLoop::Look EngineLoop::LookAtCore(bool drain) {
  const uint64_t moved = rank_->progress().moved;
  const absl::MutexLock lock(&core_mutex_);
  const TimeUs now = SteadyNow();
  if (drain) core_.Drain(now);
  CompleteSteps();
  PlanSteps();
  if (std::exchange(moved_, moved) != moved) core_.Moved(now);
  Look look;
  look.verdict = core_.verdict();
  look.stats = core_.stats();
  look.news = core_.TakeNews(now);
  look.ready_until = core_.ready_until();
  look.drained = core_.Drained(now);
  return look;
}

void EngineLoop::AddTimes() {
  const StepTimes times = rank_->TakeTimes();
  metrics_->AddTimes(times);
  profile_.Add(times.profile);
}

void EngineLoop::SetProfiling(TimeUs until) {
  profile_until_ = until;
  rank_->Profile(options_.profile || until > 0);
}

void EngineLoop::Handle(Event& event) {
  RouterStream* const key = event.stream.get();
  if (event.kind == Event::kOpen) {
    const SessionId session{next_session_++};
    {
      const absl::MutexLock lock(&core_mutex_);
      core_.Open(session);
    }
    sessions_.emplace(key, session);
    streams_.emplace(session, std::move(event.stream));
    return;
  }
  if (event.kind == Event::kClose) return CloseSession(key);
  key->Taken(event.bytes);
  const auto found = sessions_.find(key);
  if (found == sessions_.end()) return;
  const absl::Status status = HandleMessage(found->second, event.message, event.received);
  if (status.ok()) return;
  key->End(status);
  CloseSession(key);
}

absl::Status EngineLoop::HandleMessage(SessionId session, const v1::RouterMessage& message,
                                       TimeUs received) {
  for (const v1::Submit& submit : message.submits()) {
    EngineRequest request = ToRequest(submit, received);
    const absl::MutexLock lock(&core_mutex_);
    FACET_RETURN_IF_ERROR(core_.Submit(session, submit.sequence(), std::move(request), received));
  }
  for (const v1::Cancel& cancel : message.cancels()) {
    const absl::MutexLock lock(&core_mutex_);
    core_.Cancel(session, cancel.sequence(), SteadyNow());
  }
  if (message.has_profile_us()) SetProfiling(ProfileEnd(message.profile_us(), received));
  return absl::OkStatus();
}

void EngineLoop::CloseSession(RouterStream* key) {
  const auto found = sessions_.find(key);
  if (found == sessions_.end()) return;
  {
    const absl::MutexLock lock(&core_mutex_);
    core_.Close(found->second, SteadyNow());
  }
  streams_.erase(found->second);
  sessions_.erase(found);
  const absl::MutexLock lock(&mutex_);
  --streams_open_;
}

void EngineLoop::Send(std::vector<SessionNews> all) {
  for (const SessionNews& news : all) {
    v1::LeaderMessage message = ToProto(news);
    v1::LeaderState* state = message.mutable_state();
    state->set_ranks(options_.ranks);
    state->set_device(options_.device);
    if (profile_until_ > 0) *state->mutable_profile() = ToProto(profile_);
    if (news.first) {
      *state->mutable_model() = options_.model;
      state->mutable_model()->set_context_tokens(context_tokens_);
    }
    streams_.at(news.session)->Send(std::move(message));
  }
}

void EngineLoop::PublishReadiness(TimeUs until) {
  const bool was_ready = ready_until_ > 0;
  {
    const absl::MutexLock lock(&mutex_);
    ready_until_ = draining_ ? 0 : until;
  }
  if (!was_ready && ready_until_ > 0) on_ready_(true);
}

void EngineLoop::EndStreams(const absl::Status& status) {
  Look last = LookAtCore(false);
  metrics_->SetStats(last.stats);
  Send(std::move(last.news));
  for (const auto& [session, stream] : streams_) stream->End(status);
  streams_.clear();
  sessions_.clear();
  const absl::MutexLock lock(&mutex_);
  closed_ = status;
  for (const Event& event : incoming_.events) event.stream->End(status);
  incoming_ = {};
}

}  // namespace facet
