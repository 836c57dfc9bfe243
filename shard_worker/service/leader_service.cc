#include "shard_worker/service/leader_service.h"

#include <spdlog/spdlog.h>

#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/status.h"
#include "serving/grpc_status.h"
#include "shard_worker/service/convert.h"
#include "shard_worker/service/stream_reactor.h"

namespace facet {
namespace {

using Reactor = grpc::ServerBidiReactor<v1::RouterMessage, v1::LeaderMessage>;

class RefusedSession : public Reactor {
 public:
  explicit RefusedSession(const absl::Status& status) { Finish(ToGrpc(status)); }
  void OnDone() override { delete this; }
};

class SessionReactor : public StreamReactor<v1::RouterMessage, v1::LeaderMessage>,
                       public RouterStream {
 public:
  SessionReactor(const SessionOptions& options, grpc::CallbackServerContext* context,
                 std::shared_ptr<EngineLoop> loop)
      : options_(options), context_(context), peer_(context->peer()), loop_(std::move(loop)) {}

  absl::Status Open() { return loop_->Open(Self()); }

  void Send(v1::LeaderMessage message) override {
    const absl::MutexLock lock(&mutex_);
    if (!live()) return;
    unread_bytes_ += static_cast<int64_t>(message.ByteSizeLong());
    Merge(std::move(message));
    if (unread_bytes_ > options_.unread_bytes_max) {
      spdlog::warn("router {} does not read: {} bytes are queued, its session ends", peer_,
                   unread_bytes_);
      Break();
      context_->TryCancel();
    }
    Pump();
  }

  void Taken(int64_t bytes) override {
    const absl::MutexLock lock(&mutex_);
    --posted_messages_;
    posted_bytes_ -= bytes;
    if (paused_ && !Full()) {
      paused_ = false;
      ReadOn();
    }
  }

  void End(const absl::Status& status) override { Finish(status); }

 private:
  std::shared_ptr<SessionReactor> Self() {
    return std::static_pointer_cast<SessionReactor>(shared_from_this());
  }

  bool Full() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return posted_messages_ >= options_.posted_messages_max ||
           posted_bytes_ >= options_.posted_bytes_max;
  }

  bool Receive(v1::RouterMessage message) override {
    const auto bytes = static_cast<int64_t>(message.ByteSizeLong());
    bool paused;
    {
      const absl::MutexLock lock(&mutex_);
      ++posted_messages_;
      posted_bytes_ += bytes;
      paused = paused_ = Full();
    }
    loop_->Post(Self(), std::move(message), bytes);
    return !paused;
  }

  void Gone() override {
    loop_->Close(Self());
    Finish(absl::OkStatus());
  }

  bool Refill(v1::LeaderMessage* out) override ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (pending_.deltas_size() == 0 && !pending_.has_state() && cache_.empty()) return false;
    out->Clear();
    out->Swap(&pending_);
    if (!cache_.empty()) {
      out->mutable_cache()->Swap(&cache_.front());
      cache_.pop_front();
    }
    place_.clear();
    if (cache_.empty()) unread_bytes_ = 0;
    return true;
  }

  // One delta per sequence, the last state, and news of the cache, each in its own message, are all
  // that waits.
  void Merge(v1::LeaderMessage message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (v1::SequenceDelta& delta : *message.mutable_deltas()) {
      const auto [place, is_new] = place_.emplace(delta.sequence(), pending_.deltas_size());
      if (is_new) {
        pending_.add_deltas()->Swap(&delta);
      } else {
        MergeDelta(pending_.mutable_deltas(place->second), std::move(delta));
      }
    }
    if (message.has_cache()) cache_.push_back(std::move(*message.mutable_cache()));
    if (!message.has_state()) return;
    if (pending_.state().has_model()) {  // it is told once
      message.mutable_state()->mutable_model()->Swap(pending_.mutable_state()->mutable_model());
    }
    pending_.mutable_state()->Swap(message.mutable_state());
  }

  const SessionOptions options_;
  grpc::CallbackServerContext* const context_;
  const std::string peer_;
  const std::shared_ptr<EngineLoop> loop_;

  v1::LeaderMessage pending_ ABSL_GUARDED_BY(mutex_);  // without news of the cache
  std::deque<v1::CacheNews> cache_ ABSL_GUARDED_BY(mutex_);
  std::unordered_map<uint64_t, int> place_ ABSL_GUARDED_BY(mutex_);  // in pending_, by sequence
  // Of all that waits, at most.
  int64_t unread_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int posted_messages_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t posted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool paused_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

void LeaderService::Attach(std::shared_ptr<EngineLoop> loop) {
  const absl::MutexLock lock(&mutex_);
  loop_ = std::move(loop);
}

void LeaderService::Detach() { Attach(nullptr); }

Reactor* LeaderService::Session(grpc::CallbackServerContext* context) {
  const absl::MutexLock lock(&mutex_);
  if (loop_ == nullptr) return new RefusedSession(Unavailable("the group is not up"));
  const auto session = std::make_shared<SessionReactor>(options_, context, loop_);
  if (const absl::Status status = session->Open(); !status.ok()) return new RefusedSession(status);
  session->Begin();
  return session.get();
}

}  // namespace facet
