#include "client/resuming_stream.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "serving/grpc_status.h"
#include "serving/retry_delay.h"

namespace facet {
namespace {

using std::chrono::milliseconds;

// Whether another router, or the same one later, may answer what this status ended.
bool IsRetryable(const grpc::Status& status, bool has_retry_delay) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      return true;
    case grpc::StatusCode::CANCELLED:  // not by us: the router went away in the middle
      return true;
    case grpc::StatusCode::RESOURCE_EXHAUSTED:
      return has_retry_delay;
    case grpc::StatusCode::INTERNAL:
      return status.error_message().find("RST_STREAM") != std::string::npos;
    default:
      return false;
  }
}

}  // namespace

v1::Resume ResumeOf(const Answer& answer) {
  v1::Resume resume;
  for (int i = 0; i < answer.choices(); ++i) {
    const ChoiceState& choice = answer.choice(i);
    if (!choice.finish && choice.tokens.empty()) continue;
    v1::ChoiceResume& out = *resume.add_choices();
    out.set_prompt_index(i / answer.n());
    out.set_choice_index(i % answer.n());
    out.set_finished(choice.finish.has_value());
    if (choice.finish) continue;
    for (const v1::TokenOutput& token : choice.tokens) out.add_tokens(token.id());
    out.set_text_bytes(std::ssize(choice.text));
    out.set_fingerprint(choice.fingerprint);
  }
  for (const v1::PromptEcho& echo : answer.echo()) resume.add_echoed_prompts(echo.prompt_index());
  return resume;
}

ResumingStream::ResumingStream(const Connection& connection, v1::GenerateRequest request,
                               Answer& answer, size_t first_router)
    : connection_(connection),
      request_(std::move(request)),
      answer_(answer),
      deadline_(connection.Deadline()),
      current_(first_router % connection.routers.size()),
      routers_(connection.routers.size(),
               {ClientClock::time_point(), connection.options.retry.backoff_min}) {}

void ResumingStream::Start(EventLoop& loop, Events events) {
  loop_ = &loop;
  events_ = std::move(events);
  give_up_at_ = ClientClock::now() + connection_.options.retry.limit;
  StartAttempt();
}

absl::Status ResumingStream::Run(const std::function<void()>& on_message) {
  EventLoop loop;
  std::optional<absl::Status> end;
  Start(loop, {on_message, [&end](const absl::Status& status) { end = status; }});
  while (!end) loop.RunOne(ClientClock::time_point::max());
  return *end;
}

void ResumingStream::OnEvent(bool ok) {
  switch (phase_) {
    case Phase::kStarting:
      return ok ? Read() : Finish();
    case Phase::kReading:
      return ok ? Take() : Finish();
    case Phase::kFinishing:
      return Follow(TakeTurn());
    case Phase::kPausing:
      return StartAttempt();
  }
}

void ResumingStream::StartAttempt() {
  auto context = std::make_unique<grpc::ClientContext>();
  grpc::ClientContext& prepared = *context;
  connection_.Prepare(prepared, deadline_);
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    cancelled = cancelled_;
    context_ = std::move(context);
  }
  if (cancelled) return End(MakeStatus(absl::StatusCode::kCancelled, "cancelled"));
  phase_ = Phase::kStarting;
  progress_ = false;
  sound_ = absl::OkStatus();
  // Before this, Cancel() marks the context, and the call ends as it begins.
  reader_ = connection_.routers[current_].inference->AsyncGenerate(
      &prepared, NextRequest(), &loop_->queue(), static_cast<LoopEvent*>(this));
}

void ResumingStream::Read() {
  phase_ = Phase::kReading;
  reader_->Read(&response_, static_cast<LoopEvent*>(this));
}

void ResumingStream::Take() {
  progress_ = true;
  sound_ = answer_.Add(response_, ClientClock::now());
  if (sound_.ok()) {
    events_.on_message();
    return Read();
  }
  context_->TryCancel();
  Finish();
}

void ResumingStream::Finish() {
  phase_ = Phase::kFinishing;
  reader_->Finish(&status_, static_cast<LoopEvent*>(this));
}

ResumingStream::Turn ResumingStream::TakeTurn() {
  reader_.reset();
  std::unique_ptr<grpc::ClientContext> context;
  bool cancelled;
  {
    std::lock_guard lock(mutex_);
    context = std::move(context_);
    cancelled = cancelled_;
  }
  if (!sound_.ok()) return {.status = sound_};
  Turn turn;
  turn.progress = progress_;
  turn.status = Connection::Explain(connection_.routers[current_], status_);
  turn.retry_delay = RetryDelayOf(status_, *context);
  turn.retryable = !cancelled && IsRetryable(status_, turn.retry_delay.has_value());
  return turn;
}

void ResumingStream::Follow(const Turn& turn) {
  const milliseconds limit = connection_.options.retry.limit;
  if (turn.status.ok() || !turn.retryable) return End(turn.status);
  if (answer_.complete()) return End(absl::OkStatus());  // only the goodbye was lost
  const ClientClock::time_point now = ClientClock::now();
  if (turn.progress) give_up_at_ = now + limit;
  const bool resumable = answer_.start() || !answer_.begun();
  const ClientClock::time_point next = ChooseNext(turn);
  if (limit <= milliseconds(0) || !resumable || next >= give_up_at_) return End(turn.status);
  PauseUntil(next);
}

void ResumingStream::PauseUntil(ClientClock::time_point when) {
  phase_ = Phase::kPausing;
  std::lock_guard lock(mutex_);
  // What is cancelled already does not wait: StartAttempt() sees it.
  pause_.Set(&loop_->queue(), cancelled_ ? gpr_inf_past(GPR_CLOCK_MONOTONIC) : ToGrpc(when),
             static_cast<LoopEvent*>(this));
}

void ResumingStream::End(const absl::Status& status) {
  const auto on_end = std::move(events_.on_end);
  on_end(status);
}

v1::GenerateRequest ResumingStream::NextRequest() {
  if (std::exchange(first_, false)) return request_;
  if (const auto& start = answer_.start()) {
    request_.set_request_id(answer_.request_id());
    request_.set_seed(start->seed());
    *request_.mutable_resume() = ResumeOf(answer_);
  } else if (!request_.request_id().empty()) {
    // Nothing came, but a router may have the request: an empty resume takes it over.
    if (!request_.has_seed()) request_.set_seed(std::random_device()());
    request_.mutable_resume();
  }
  return request_;
}

ClientClock::time_point ResumingStream::ChooseNext(const Turn& turn) {
  const ClientClock::time_point now = ClientClock::now();
  const RetryOptions& options = connection_.options.retry;
  if (turn.progress) {
    for (RouterState& router : routers_) router.backoff = options.backoff_min;
  }
  RouterState& failed = routers_[current_];
  const milliseconds delay = std::max(failed.backoff, turn.retry_delay.value_or(milliseconds(0)));
  // Up to a quarter longer, so that many clients do not come back at the same instant.
  const auto jitter = std::uniform_int_distribution<int64_t>(0, delay.count() / 4)(jitter_);
  failed.not_before = now + delay + milliseconds(jitter);
  failed.backoff = std::min(2 * failed.backoff, options.backoff_max);
  const auto ready_at = [&](size_t index) { return std::max(now, routers_[index].not_before); };
  size_t best = current_;  // the first in turn of those that may be asked soonest
  for (size_t i = routers_.size() - 1; i > 0; --i) {
    const size_t index = (current_ + i) % routers_.size();
    if (ready_at(index) <= ready_at(best)) best = index;
  }
  current_ = best;
  return ready_at(best);
}

void ResumingStream::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (context_ != nullptr) context_->TryCancel();
  pause_.Cancel();
}

}  // namespace facet
