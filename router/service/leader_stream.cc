#include "router/service/leader_stream.h"

#include <utility>

#include "serving/grpc_status.h"

namespace facet {

std::shared_ptr<LeaderStream> LeaderStream::Start(v1::Leader::Stub& stub,
                                                  grpc::CompletionQueue& queue, Events events) {
  std::shared_ptr<LeaderStream> stream(new LeaderStream(std::move(events)));
  stream->self_ = stream;
  stream->call_ = stub.PrepareAsyncSession(&stream->context_, &queue);
  stream->call_->StartCall(static_cast<QueueEvent*>(&stream->started_event_));
  return stream;
}

bool LeaderStream::OnStarted(bool ok) {
  open_ = ok;
  if (!ok) {
    Finish();
    return false;
  }
  ReadNext();
  Pump();
  return false;
}

void LeaderStream::Send(v1::RouterMessage message) {
  pending_.MergeFrom(message);
  Pump();
}

void LeaderStream::Pump() {
  if (!open_ || writing_) return;
  if (pending_.ByteSizeLong() == 0) return;
  writing_ = true;
  call_->Write(pending_, static_cast<QueueEvent*>(&written_));  // serializes it at once
  pending_.Clear();
}

bool LeaderStream::OnRead(bool ok) {
  if (ok) {
    events_.on_message(incoming_);
    return true;
  }
  open_ = false;
  Finish();
  return false;
}

bool LeaderStream::OnWritten(bool ok) {
  writing_ = false;
  if (ok) Pump();  // else the read that is under way fails too
  return EndIfOver();
}

void LeaderStream::Finish() { call_->Finish(&status_, static_cast<QueueEvent*>(&finished_event_)); }

bool LeaderStream::OnFinished(bool) {
  finished_ = true;
  return EndIfOver();
}

bool LeaderStream::EndIfOver() {
  if (!finished_ || writing_) return false;
  const std::shared_ptr<LeaderStream> self = std::move(self_);
  events_.on_end(FromGrpc(status_));
  return true;
}

}  // namespace facet
