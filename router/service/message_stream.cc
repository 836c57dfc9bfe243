#include "router/service/message_stream.h"

#include <utility>

namespace facet {

MessageStream::MessageStream(const MessageStreamOptions& options,
                             v1::Inference::AsyncService& service, Handler handler, LiveCalls& live)
    : options_(options),
      service_(service),
      handler_(std::move(handler)),
      live_(live),
      call_(std::make_unique<Call>()) {}

void MessageStream::Request(grpc::ServerCompletionQueue& queue, void* tag) {
  call_->context.AsyncNotifyWhenDone(static_cast<QueueEvent*>(&call_done_event_));
  service_.RequestGenerate(&call_->context, &call_->request, &call_->writer, &queue, &queue, tag);
}

void MessageStream::Take() {
  open_ = live_.Begin(*this);
  handler_(std::static_pointer_cast<MessageStream>(self_));
}

ResponseSink::Room MessageStream::Write(v1::GenerateResponse part) {
  pending_bytes_ += static_cast<int64_t>(part.ByteSizeLong());
  Merge(std::move(part));
  // With nothing under way it goes with the next Flush(), however long.
  const bool full = pending_bytes_ > options_.pending_bytes_max && writing();
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
  final_ = FinalStatus(call_->context, status);
  Pump();
}

void MessageStream::Pump() {
  if (writing() || finish_started_) return;
  const bool write = pending_bytes_ > 0 && !broken_;
  // Only success may go with a message: OnWritten() comes back to any other status.
  finish_started_ = final_ && (!write || final_->ok());
  if (write) {
    WritePending();
  } else if (finish_started_) {
    NoteWriting();
    call_->writer.Finish(*final_, static_cast<QueueEvent*>(&finished_event_));
  }
}

void MessageStream::WritePending() {
  NoteWriting();
  // Both serialize the message at once.
  if (finish_started_) {
    call_->writer.WriteAndFinish(pending_, {}, *final_, static_cast<QueueEvent*>(&finished_event_));
  } else {
    call_->writer.Write(pending_, static_cast<QueueEvent*>(&written_));
  }
  pending_.Clear();
  pending_bytes_ = 0;
  last_delta_.clear();
  if (std::exchange(full_, false)) NoteDrained();
}

bool MessageStream::OnWritten(bool ok) {
  NoteWritten();
  broken_ = broken_ || !ok;
  Pump();
  return kNoTurn;
}

bool MessageStream::OnFinished(bool) {
  NoteWritten();
  finished_ = true;
  EndIfOver();
  return kNoTurn;
}

bool MessageStream::OnCallDone(bool) {
  call_done_ = true;
  if (call_->context.IsCancelled()) NoteCancel();
  EndIfOver();
  return kNoTurn;
}

void MessageStream::EndIfOver() {
  if (!finished_ || !call_done_) return;
  const std::shared_ptr<IncomingCall> self = std::move(self_);
  call_.reset();
  live_.End(*this);
}

}  // namespace facet
