#ifndef FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_
#define FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_

#include <grpcpp/support/server_callback.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "facet/v1/inference.pb.h"
#include "router/service/response_sink.h"

namespace facet {

struct MessageStreamOptions {
  // What may wait for a client that reads slowly, beside what gRPC itself has under way, before
  // its request is paused. Passed by what is on its way from the core then.
  int64_t pending_bytes_max = 64 << 10;
  // A write that makes no progress for so long ends the call.
  TimeUs stall_max_us = 30'000'000;
};

// The answer of one streaming call: one write under way, later parts merge into the next message.
// Lives until gRPC is done with it, whoever else lets go.
class MessageStream : public grpc::ServerWriteReactor<v1::GenerateResponse>, public ResponseSink {
 public:
  // `on_done` runs once gRPC is done with the call.
  static std::shared_ptr<MessageStream> Start(grpc::CallbackServerContext* context,
                                              const MessageStreamOptions& options,
                                              std::function<void()> on_done);

  Room Write(v1::GenerateResponse part) override;
  void Flush() override { Pump(); }
  void Finish(const absl::Status& status) override;
  State Sweep(TimeUs now) override;

 private:
  MessageStream(grpc::CallbackServerContext* context, const MessageStreamOptions& options,
                std::function<void()> on_done)
      : context_(context), options_(options), on_done_(std::move(on_done)) {}

  void OnWriteDone(bool ok) override;
  void OnCancel() override { NoteCancel(); }
  void OnDone() override;
  grpc::Status Final();
  // Starts what is next if nothing is under way.
  void Pump();
  void Merge(v1::GenerateResponse part) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  grpc::CallbackServerContext* const context_;  // valid until OnDone
  const MessageStreamOptions options_;
  std::function<void()> on_done_;
  v1::GenerateResponse outgoing_;  // under way
  absl::Mutex mutex_;
  v1::GenerateResponse pending_ ABSL_GUARDED_BY(mutex_);
  int64_t pending_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Where in `pending_` the last delta of each choice is.
  absl::flat_hash_map<int64_t, int> last_delta_ ABSL_GUARDED_BY(mutex_);
  bool full_ ABSL_GUARDED_BY(mutex_) = false;  // said so, and not drained yet
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // a write has failed
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;  // its client does not read
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
  TimeUs write_started_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<grpc::Status> final_ ABSL_GUARDED_BY(mutex_);
  bool finish_started_ ABSL_GUARDED_BY(mutex_) = false;
  std::shared_ptr<MessageStream> self_;  // until OnDone
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_MESSAGE_STREAM_H_
