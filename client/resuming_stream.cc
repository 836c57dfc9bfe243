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

absl::Status ResumingStream::Run(const std::function<void()>& on_message) {
  const milliseconds limit = connection_.options.retry.limit;
  ClientClock::time_point give_up_at = ClientClock::now() + limit;
  for (;;) {
    const Turn turn = Attempt(on_message);
    if (turn.status.ok() || !turn.retryable) return turn.status;
    if (answer_.complete()) return absl::OkStatus();  // only the goodbye was lost
    const ClientClock::time_point now = ClientClock::now();
    if (turn.progress) give_up_at = now + limit;
    const bool resumable = answer_.start() || !answer_.begun();
    const ClientClock::time_point next = ChooseNext(turn);
    if (limit <= milliseconds(0) || !resumable || next >= give_up_at) return turn.status;
    if (!WaitUntil(next)) return MakeStatus(absl::StatusCode::kCancelled, "cancelled");
  }
}

ResumingStream::Turn ResumingStream::Attempt(const std::function<void()>& on_message) {
  const RouterStubs& router = connection_.routers[current_];
  const v1::GenerateRequest request = NextRequest();
  grpc::ClientContext context;
  connection_.Prepare(context, deadline_);
  if (!Register(context)) return {.status = MakeStatus(absl::StatusCode::kCancelled, "cancelled")};
  const auto reader = router.inference->Generate(&context, request);
  Turn turn;
  v1::GenerateResponse response;
  absl::Status sound;
  while (sound.ok() && reader->Read(&response)) {
    turn.progress = true;
    sound = answer_.Add(response, ClientClock::now());
    if (sound.ok()) on_message();
  }
  if (!sound.ok()) context.TryCancel();
  const grpc::Status status = reader->Finish();
  Unregister();
  if (!sound.ok()) return {.status = sound};
  turn.status = Connection::Explain(router, status);
  turn.retry_delay = RetryDelayOf(status, context);
  turn.retryable = IsRetryable(status, turn.retry_delay.has_value());
  std::lock_guard lock(mutex_);
  turn.retryable = turn.retryable && !cancelled_;
  return turn;
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

bool ResumingStream::WaitUntil(ClientClock::time_point when) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, when, [this] { return cancelled_; });
  return !cancelled_;
}

bool ResumingStream::Register(grpc::ClientContext& context) {
  std::lock_guard lock(mutex_);
  if (!cancelled_) running_ = &context;
  return !cancelled_;
}

void ResumingStream::Unregister() {
  std::lock_guard lock(mutex_);
  running_ = nullptr;
}

void ResumingStream::Cancel() {
  std::lock_guard lock(mutex_);
  cancelled_ = true;
  if (running_ != nullptr) running_->TryCancel();
  changed_.notify_all();
}

}  // namespace facet
