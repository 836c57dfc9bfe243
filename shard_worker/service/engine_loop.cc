#include "shard_worker/service/engine_loop.h"

#include <algorithm>
#include <utility>

#include "absl/time/time.h"
#include "base/check.h"
#include "base/status.h"
#include "shard_worker/service/convert.h"

namespace facet {

TimeUs SteadyNow() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

namespace {

TimeUs Us(std::chrono::milliseconds duration) { return duration.count() * 1000; }

}  // namespace

EngineLoop::EngineLoop(const EngineLoopOptions& options, Executor* executor,
                       std::function<StepTimes()> take_times, WorkerMetrics* metrics)
    : options_(options),
      executor_(executor),
      take_times_(std::move(take_times)),
      metrics_(metrics),
      engine_(options.engine),
      stats_(engine_.stats()) {}

EngineLoop::~EngineLoop() = default;

// --- Any thread.

absl::Status EngineLoop::Open(std::shared_ptr<RouterStream> stream) {
  const absl::MutexLock lock(&mutex_);
  if (closed_ || drain_) return Unavailable("the leader is shutting down");
  if (streams_open_ >= options_.streams_max) {
    return ResourceExhausted("{} routers have a session already; at most {} may", streams_open_,
                             options_.streams_max);
  }
  ++streams_open_;
  events_.push_back({Event::kOpen, std::move(stream), {}, 0, 0});
  wake_ = true;
  return absl::OkStatus();
}

void EngineLoop::Post(std::shared_ptr<RouterStream> stream, v1::RouterMessage message,
                      int64_t bytes) {
  const absl::MutexLock lock(&mutex_);
  if (closed_) return;
  events_.push_back({Event::kMessage, std::move(stream), std::move(message), SteadyNow(), bytes});
  wake_ = true;
}

void EngineLoop::Close(std::shared_ptr<RouterStream> stream) {
  const absl::MutexLock lock(&mutex_);
  if (closed_) return;
  events_.push_back({Event::kClose, std::move(stream), {}, 0, 0});
  wake_ = true;
}

void EngineLoop::Drain() {
  const absl::MutexLock lock(&mutex_);
  drain_ = true;
  wake_ = true;
}

void EngineLoop::Fail(const absl::Status& status) {
  const absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = status;
  wake_ = true;
}

// --- The engine thread.

std::deque<EngineLoop::Event> EngineLoop::TakeEvents(TimeUs until) {
  const absl::Duration timeout = absl::Microseconds(std::max<TimeUs>(0, until - SteadyNow()));
  const absl::MutexLock lock(&mutex_);
  mutex_.AwaitWithTimeout(absl::Condition(&wake_), timeout);
  wake_ = false;
  return std::exchange(events_, {});
}

absl::Status EngineLoop::Failure() const {
  const absl::MutexLock lock(&mutex_);
  return failure_;
}

absl::Status EngineLoop::Run() {
  last_plan_ = SteadyNow();
  absl::Status status;
  while (status.ok() && !Finished(SteadyNow())) status = Turn();
  // The rank that was lost explains more than the collective that failed for it.
  if (absl::Status failure = Failure(); !failure.ok()) status = failure;
  EndStreams(status.ok() ? Unavailable("the leader is shutting down")
                         : Unavailable("the group has broken: {}", MessageOf(status)));
  return status;
}

bool EngineLoop::Finished(TimeUs now) {
  if (!drain_until_) {
    const absl::MutexLock lock(&mutex_);
    if (!drain_) return false;
    drain_until_ = now + Us(options_.drain);
  }
  return running_.empty() || now >= *drain_until_;
}

absl::Status EngineLoop::Turn() {
  for (Event& event : TakeEvents(busy_ ? 0 : IdleUntil())) Handle(event);
  FACET_RETURN_IF_ERROR(Failure());
  const TimeUs now = SteadyNow();
  const std::optional<StepPlan> plan = engine_.Plan(now);
  busy_ = plan.has_value();
  if (plan) {
    FACET_RETURN_IF_ERROR(RunPlan(*plan));
  } else if (now - last_plan_ >= Us(options_.keep_alive)) {
    FACET_RETURN_IF_ERROR(executor_->Run(engine_.PlanIdle()).status());
    last_plan_ = SteadyNow();
    metrics_->AddTimes(take_times_());
  }
  CollectDeltas();
  stats_ = engine_.stats();
  metrics_->SetEngineStats(stats_);
  Flush(SteadyNow());
  return absl::OkStatus();
}

absl::Status EngineLoop::RunPlan(const StepPlan& plan) {
  const TimeUs start = SteadyNow();
  FACET_ASSIGN_OR_RETURN(const StepResult result, executor_->Run(plan));
  last_plan_ = SteadyNow();
  engine_.Complete(result, last_plan_);
  int64_t rows = 0;
  for (const Segment& segment : plan.segments) rows += static_cast<int64_t>(segment.tokens.size());
  metrics_->AddStep(static_cast<double>(last_plan_ - start) * 1e-6, rows);
  metrics_->AddTimes(take_times_());
  return absl::OkStatus();
}

TimeUs EngineLoop::IdleUntil() const {
  TimeUs until = last_plan_ + Us(options_.keep_alive);
  for (const auto& [key, stream] : streams_) {
    until = std::min(until, stream.last_sent + Us(options_.state_period));
  }
  if (const std::optional<TimeUs> deadline = engine_.NextDeadline()) {
    until = std::min(until, *deadline);
  }
  if (drain_until_) until = std::min(until, *drain_until_);
  return until;
}

void EngineLoop::Handle(Event& event) {
  RouterStream* const key = event.stream.get();
  if (event.kind == Event::kOpen) {
    Stream& stream = streams_[key];
    stream.stream = std::move(event.stream);
    *stream.outgoing.mutable_state()->mutable_model() = options_.model;
    stream.outgoing.mutable_state()->mutable_model()->set_context_tokens(engine_.context_tokens());
    metrics_->SetStreams(static_cast<int>(streams_.size()));
    return;
  }
  if (event.kind == Event::kClose) return CloseStream(key);
  key->Taken(event.bytes);
  const auto found = streams_.find(key);
  if (found == streams_.end()) return;
  const absl::Status status = HandleMessage(&found->second, event.message, event.received);
  if (status.ok()) return;
  key->End(status);
  CloseStream(key);
}

absl::Status EngineLoop::HandleMessage(Stream* stream, const v1::RouterMessage& message,
                                       TimeUs received) {
  for (const v1::Submit& submit : message.submits()) {
    ++stream->submits_received;
    if (stream->sequences.count(submit.sequence()) > 0) {
      return InvalidArgument("sequence: {} is still running", submit.sequence());
    }
    const absl::Status status = Submit(stream, submit, received);
    if (status.ok()) continue;
    *stream->outgoing.add_deltas() = RefusalDelta(submit.sequence(), status);
    metrics_->AddRefusal();
  }
  for (const v1::Cancel& cancel : message.cancels()) {
    const auto found = stream->sequences.find(cancel.sequence());
    if (found != stream->sequences.end()) engine_.Cancel(found->second, SteadyNow());
  }
  return absl::OkStatus();
}

absl::Status EngineLoop::Submit(Stream* stream, const v1::Submit& submit, TimeUs received) {
  if (drain_until_) return Unavailable("the leader is shutting down");
  if (submit.logits_digest() && !options_.allow_logits_digest) {
    return Unimplemented("logits_digest: this worker runs without --allow_logits_digest");
  }
  const SequenceId id{next_sequence_++};
  FACET_RETURN_IF_ERROR(engine_.Submit(ToRequest(submit, id, received), received));
  stream->sequences.emplace(submit.sequence(), id);
  running_.emplace(id, Running{stream, submit.sequence()});
  return absl::OkStatus();
}

void EngineLoop::CloseStream(RouterStream* key) {
  const auto found = streams_.find(key);
  if (found == streams_.end()) return;
  for (const auto& [number, id] : found->second.sequences) {
    engine_.Cancel(id, SteadyNow());
    running_.erase(id);  // its last news has no reader
  }
  streams_.erase(found);
  metrics_->SetStreams(static_cast<int>(streams_.size()));
  const absl::MutexLock lock(&mutex_);
  --streams_open_;
}

void EngineLoop::CollectDeltas() {
  for (const EngineDelta& delta : engine_.TakeDeltas()) {
    if (delta.finish) metrics_->AddFinish(*delta.finish);
    const auto found = running_.find(delta.id);
    if (found == running_.end()) continue;
    const Running running = found->second;
    *running.stream->outgoing.add_deltas() = ToProto(delta, running.number);
    if (!delta.finish) continue;
    running.stream->sequences.erase(running.number);
    running_.erase(found);
  }
}

void EngineLoop::Flush(TimeUs now) {
  const bool announce_drain = drain_until_.has_value() && !std::exchange(drain_announced_, true);
  for (auto& [key, stream] : streams_) {
    const bool due = stream.outgoing.deltas_size() > 0 || stream.outgoing.has_state() ||
                     now - stream.last_sent >= Us(options_.state_period) || announce_drain;
    if (!due) continue;
    SetState(stream, stream.outgoing.mutable_state());
    key->Send(std::exchange(stream.outgoing, {}));
    stream.last_sent = now;
  }
}

void EngineLoop::SetState(const Stream& stream, v1::LeaderState* state) const {
  const int pool = stats_.blocks_total[0] > 0 ? 0 : 1;
  state->set_ranks(options_.ranks);
  state->set_device(options_.device);
  state->set_running(stats_.running);
  state->set_waiting(stats_.waiting);
  state->set_kv_tokens_used(int64_t{stats_.blocks_used[pool]} * options_.engine.block_tokens);
  state->set_kv_tokens_total(int64_t{stats_.blocks_total[pool]} * options_.engine.block_tokens);
  state->set_credit_tokens(Credit());
  state->set_prompt_tokens_done(stats_.prompt_tokens_done);
  state->set_output_tokens_done(stats_.output_tokens_done);
  state->set_draining(drain_until_.has_value());
  state->set_submits_received(stream.submits_received);
}

// One step budget of unstarted tokens may wait here, shared evenly between the routers; the rest
// waits in the routers, where fairness and deadlines are decided.
int64_t EngineLoop::Credit() const {
  if (drain_until_ || stats_.waiting >= options_.engine.waiting_max) return 0;
  const int64_t room = options_.engine.step_tokens_max - stats_.waiting_tokens;
  const auto streams = static_cast<int64_t>(streams_.size());
  return room <= 0 ? 0 : (room + streams - 1) / streams;
}

void EngineLoop::EndStreams(const absl::Status& status) {
  for (auto& [key, stream] : streams_) {
    if (stream.outgoing.deltas_size() > 0) key->Send(std::move(stream.outgoing));
    key->End(status);
  }
  streams_.clear();
  running_.clear();
  const absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (const Event& event : events_) event.stream->End(status);
  events_.clear();
}

}  // namespace facet
