#include "router/service/message_stream.h"

#include <utility>

#include "router/service/serial_thread.h"

namespace facet {

std::shared_ptr<MessageStream> MessageStream::Start(grpc::CallbackServerContext* context,
                                                    const MessageStreamOptions& options,
                                                    std::function<void()> on_done) {
  std::shared_ptr<MessageStream> stream(new MessageStream(context, options, std::move(on_done)));
  stream->self_ = stream;
  return stream;
}

ResponseSink::Room MessageStream::Write(v1::GenerateResponse part) {
  absl::MutexLock lock(&mutex_);
  pending_bytes_ += static_cast<int64_t>(part.ByteSizeLong());
  Merge(std::move(part));
  // With nothing under way it goes with the next Flush(), however long.
  const bool full = pending_bytes_ > options_.pending_bytes_max && writing_;
  full_ = full_ || full;
  return full ? Room::kFull : Room::kMore;
}

void MessageStream::Merge(v1::GenerateResponse part) {
  if (!part.request_id().empty()) pending_.set_request_id(part.request_id());
  if (part.has_start()) *pending_.mutable_start() = std::move(*part.mutable_start());
  for (v1::PromptEcho& echo : *part.mutable_echo()) *pending_.add_echo() = std::move(echo);
  for (v1::Delta& delta : *part.mutable_deltas()) {
    const int64_t choice = (int64_t{delta.prompt_index()} << 32) | delta.choice_index();
    const auto [place, fresh] = last_delta_.try_emplace(choice, pending_.deltas_size());
    if (fresh) {
      *pending_.add_deltas() = std::move(delta);
      continue;
    }
    v1::Delta& last = *pending_.mutable_deltas(place->second);
    for (v1::TokenOutput& token : *delta.mutable_tokens()) *last.add_tokens() = std::move(token);
    last.mutable_text()->append(delta.text());
    if (last.fingerprint().empty()) last.set_fingerprint(delta.fingerprint());
    if (delta.has_finish()) *last.mutable_finish() = std::move(*delta.mutable_finish());
  }
}

void MessageStream::Finish(const absl::Status& status) {
  {
    absl::MutexLock lock(&mutex_);
    final_ = FinalStatus(*context_, status);
  }
  Pump();
}

void MessageStream::Pump() {
  enum class Step { kNone, kWrite, kLastWrite, kFinish } step = Step::kNone;
  bool drained = false;
  {
    absl::MutexLock lock(&mutex_);
    if (writing_ || finish_started_) return;
    const bool write = pending_bytes_ > 0 && !broken_;
    if (write) {
      outgoing_ = std::move(pending_);
      pending_.Clear();
      pending_bytes_ = 0;
      last_delta_.clear();
      drained = std::exchange(full_, false);
      writing_ = true;
      write_started_ = MonotonicNow();
    }
    finish_started_ = final_.has_value();
    if (write) {
      step = finish_started_ ? Step::kLastWrite : Step::kWrite;
    } else if (finish_started_) {
      step = Step::kFinish;
    }
  }
  // final_ does not change once finish_started_ is set, and only one thread gets here with a step.
  if (step == Step::kWrite) StartWrite(&outgoing_);
  if (step == Step::kLastWrite) StartWriteAndFinish(&outgoing_, {}, Final());
  if (step == Step::kFinish) grpc::ServerWriteReactor<v1::GenerateResponse>::Finish(Final());
  if (drained) NoteDrained();
}

grpc::Status MessageStream::Final() {
  absl::MutexLock lock(&mutex_);
  return *final_;
}

ResponseSink::State MessageStream::Sweep(TimeUs now) {
  absl::MutexLock lock(&mutex_);
  if (done_) return State::kOver;
  if (!writing_ || given_up_ || now - write_started_ <= options_.stall_max_us) return State::kLive;
  // The context lives while done_ is false. Reactions run on gRPC's threads, never inside this.
  context_->TryCancel();
  given_up_ = true;
  return State::kGivenUp;
}

void MessageStream::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    broken_ = broken_ || !ok;
  }
  Pump();
}

void MessageStream::OnDone() {
  const std::shared_ptr<MessageStream> self = std::move(self_);
  {
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }
  on_done_();
}

}  // namespace facet
