#include "shard_worker/service/engine_loop.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "base/status.h"
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

void EngineLoop::AddStep(StepDone done) {
  const absl::MutexLock lock(&mutex_);
  incoming_.steps.push_back(std::move(done));
  wake_ = true;
}

EngineLoop::Incoming EngineLoop::Take(TimeUs until) {
  const absl::Duration timeout = absl::Microseconds(std::max<TimeUs>(0, until - SteadyNow()));
  const absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&wake_), timeout);
  wake_ = false;
  return std::exchange(incoming_, {});
}

// --- The engine thread.

EpochEnd EngineLoop::Run() {
  pipeline_ = std::make_unique<StepPipeline>(executor_.get(),
                                             [this](StepDone done) { AddStep(std::move(done)); });
  metrics_->BeginEpoch();
  SetProfiling(0);  // what an earlier epoch was asked
  PlanSteps();      // the first canary waits for nobody
  PublishReadiness();
  std::optional<EpochEnd> end;
  while (!end) end = Turn();
  metrics_->SetStats(core_.stats());
  ready_until_ = 0;
  on_ready_(false);
  // First the routers hear of it, so that they can turn elsewhere; then what hangs is cut.
  EndStreams(end->status.ok() ? Unavailable("the leader is shutting down") : end->status);
  if (!end->status.ok()) rank_->Abort();
  pipeline_.reset();
  return *std::move(end);
}

std::optional<EpochEnd> EngineLoop::Turn() {
  pulse_->Beat();
  Incoming incoming = Take(std::min(core_.NextWake(), SteadyNow() + options_.wait_max));
  const auto broken = [&](const absl::Status& why, BreakCause cause, bool condemned) {
    return EpochEnd{Unavailable("epoch {:016x} broke: {}", options_.core.epoch, MessageOf(why)),
                    cause, condemned};
  };
  // The rank that was lost explains more than the step that failed for it.
  if (incoming.failure) return broken(incoming.failure->status, incoming.failure->cause, false);
  for (StepDone& done : incoming.steps) {
    if (const absl::Status status = Complete(done); !status.ok()) {
      return broken(status, BreakCause::kStepFailed, false);
    }
  }
  if (!core_.verdict().ok()) return broken(core_.verdict(), BreakCause::kStepFailed, true);
  if (incoming.drain) core_.Drain(SteadyNow());
  for (Event& event : incoming.events) Handle(event);
  PlanSteps();
  NoteMovement();
  if (profile_until_ > 0 && SteadyNow() >= profile_until_) SetProfiling(0);
  metrics_->SetStats(core_.stats());  // before who is told looks
  SendNews();
  PublishReadiness();
  if (core_.Drained(SteadyNow())) return EpochEnd{};
  return std::nullopt;
}

absl::Status EngineLoop::Complete(StepDone& done) {
  FACET_RETURN_IF_ERROR(done.result.status());
  core_.Complete(*done.result, SteadyNow());
  if (done.rows > 0) metrics_->AddStep(done.seconds, done.rows);
  const StepTimes times = rank_->TakeTimes();
  metrics_->AddTimes(times);
  profile_.Add(times.profile);
  return absl::OkStatus();
}

void EngineLoop::SetProfiling(TimeUs until) {
  profile_until_ = until;
  rank_->Profile(options_.profile || until > 0);
}

void EngineLoop::PlanSteps() {
  while (core_.outstanding() < options_.core.engine.steps_max) {
    std::optional<StepPlan> plan = core_.Plan(SteadyNow());
    if (!plan) return;
    pipeline_->Push(*std::move(plan));
  }
}

void EngineLoop::NoteMovement() {
  const uint64_t moved = rank_->progress().moved;
  if (std::exchange(moved_, moved) != moved) core_.Moved(SteadyNow());
}

void EngineLoop::Handle(Event& event) {
  RouterStream* const key = event.stream.get();
  if (event.kind == Event::kOpen) {
    const SessionId session{next_session_++};
    core_.Open(session);
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
    FACET_RETURN_IF_ERROR(
        core_.Submit(session, submit.sequence(), ToRequest(submit, received), received));
  }
  for (const v1::Cancel& cancel : message.cancels()) {
    core_.Cancel(session, cancel.sequence(), SteadyNow());
  }
  if (message.has_profile_us()) SetProfiling(ProfileEnd(message.profile_us(), received));
  return absl::OkStatus();
}

void EngineLoop::CloseSession(RouterStream* key) {
  const auto found = sessions_.find(key);
  if (found == sessions_.end()) return;
  core_.Close(found->second, SteadyNow());
  streams_.erase(found->second);
  sessions_.erase(found);
  const absl::MutexLock lock(&mutex_);
  --streams_open_;
}

void EngineLoop::SendNews() {
  for (SessionNews& news : core_.TakeNews(SteadyNow())) {
    v1::LeaderMessage message = ToProto(news);
    v1::LeaderState* state = message.mutable_state();
    state->set_ranks(options_.ranks);
    state->set_device(options_.device);
    if (profile_until_ > 0) *state->mutable_profile() = ToProto(profile_);
    if (news.first) {
      *state->mutable_model() = options_.model;
      state->mutable_model()->set_context_tokens(core_.context_tokens());
    }
    streams_.at(news.session)->Send(std::move(message));
  }
}

void EngineLoop::PublishReadiness() {
  const TimeUs until = core_.ready_until();
  const bool was_ready = ready_until_ > 0;
  {
    const absl::MutexLock lock(&mutex_);
    ready_until_ = draining_ ? 0 : until;
  }
  if (!was_ready && ready_until_ > 0) on_ready_(true);
}

void EngineLoop::EndStreams(const absl::Status& status) {
  SendNews();
  for (const auto& [session, stream] : streams_) stream->End(status);
  streams_.clear();
  sessions_.clear();
  const absl::MutexLock lock(&mutex_);
  closed_ = status;
  for (const Event& event : incoming_.events) event.stream->End(status);
  incoming_ = {};
}

}  // namespace facet
