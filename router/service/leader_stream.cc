#include "router/service/leader_stream.h"

#include <utility>

#include "serving/grpc_status.h"

namespace facet {

std::shared_ptr<LeaderStream> LeaderStream::Start(v1::Leader::Stub& stub, Events events) {
  std::shared_ptr<LeaderStream> stream(new LeaderStream(std::move(events)));
  stream->self_ = stream;
  stub.async()->Session(&stream->context_, stream.get());
  stream->AddHold();  // for reads and writes from outside gRPC's callbacks; until closed_
  stream->StartRead(&stream->incoming_);
  stream->StartCall();
  return stream;
}

void LeaderStream::Send(v1::RouterMessage message) {
  {
    absl::MutexLock lock(&mutex_);
    pending_.MergeFrom(message);
  }
  Pump();
}

void LeaderStream::Pump() {
  {
    absl::MutexLock lock(&mutex_);
    if (closed_ || writing_) return;
    if (pending_.ByteSizeLong() == 0) return;
    outgoing_ = std::move(pending_);
    pending_.Clear();
    writing_ = true;
    AddHold();  // legal while closed_ is false; keeps the call open until the write is started
  }
  StartWrite(&outgoing_);
  RemoveHold();
}

void LeaderStream::OnReadDone(bool ok) {
  if (ok) return events_.on_message(std::move(incoming_));
  {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }
  RemoveHold();
}

void LeaderStream::OnWriteDone(bool ok) {
  {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
  }
  if (ok) Pump();  // else the read that is under way fails too
}

void LeaderStream::OnDone(const grpc::Status& status) {
  const auto on_end = std::move(events_.on_end);
  on_end(std::move(self_), FromGrpc(status));  // this object may be gone now
}

}  // namespace facet
