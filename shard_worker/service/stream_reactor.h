#ifndef FACET_SHARD_WORKER_SERVICE_STREAM_REACTOR_H_
#define FACET_SHARD_WORKER_SERVICE_STREAM_REACTOR_H_

#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "serving/grpc_status.h"

namespace facet {

// The rules of a bidirectional server stream: one write at a time, one end, after the last write,
// and life until gRPC is done with it. A subclass says what to write and what a message means.
// gRPC's threads call the On... methods; any thread may call the others.
template <typename In, typename Out>
class StreamReactor : public grpc::ServerBidiReactor<In, Out>,
                      public std::enable_shared_from_this<StreamReactor<In, Out>> {
 public:
  // Call once, right after construction; the reactor then holds itself until OnDone().
  void Begin() {
    self_ = this->shared_from_this();
    this->StartRead(&incoming_);
  }

  // Ends the stream once nothing is left to write. The first status counts.
  void Finish(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::MutexLock lock(&mutex_);
    SetFinish(ToGrpc(status));
    Pump();
  }

 protected:
  // Takes what is to be written next, if anything. The lock is held.
  virtual bool Refill(Out* out) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) = 0;
  // False: do not read on until ReadOn().
  virtual bool Receive(In message) = 0;
  // The peer has said its last, or is gone. May come more than once.
  virtual void Gone() = 0;

  // Writes, or ends, if that can be done now.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || finished_) return;
    if (!broken_ && Refill(&outgoing_)) {
      writing_ = true;
      this->StartWrite(&outgoing_);
    } else if (finish_) {
      finished_ = true;
      grpc::ServerBidiReactor<In, Out>::Finish(*finish_);
    }
  }

  void ReadOn() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!finished_) this->StartRead(&incoming_);
  }

  // What is left to write is dropped.
  void Break() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    broken_ = true;
    SetFinish(grpc::Status(grpc::CANCELLED, "the stream was cancelled"));
  }

  // False: whoever writes now writes to nobody.
  bool live() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return !broken_ && !finish_; }

  mutable absl::Mutex mutex_;

 private:
  void OnReadDone(bool ok) final {
    if (!ok) return Gone();
    if (!Receive(std::move(incoming_))) return;
    const absl::MutexLock lock(&mutex_);
    ReadOn();
  }

  void OnWriteDone(bool ok) final {
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (!ok) Break();
    Pump();
  }

  void OnCancel() final {
    {
      const absl::MutexLock lock(&mutex_);
      Break();
      Pump();
    }
    Gone();
  }

  void OnDone() final {
    Gone();
    const auto self = std::move(self_);  // may be the last owner
  }

  void SetFinish(grpc::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!finish_) finish_ = std::move(status);
  }

  std::shared_ptr<StreamReactor> self_;
  In incoming_;
  Out outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<grpc::Status> finish_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_STREAM_REACTOR_H_
