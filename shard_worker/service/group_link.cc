#include "shard_worker/service/group_link.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>
#include <spdlog/spdlog.h>

#include <condition_variable>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "serving/grpc_channel.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

// The link is how a follower hears that its leader's host has gone silent.
ChannelOptions LinkChannel() {
  ChannelOptions options;
  options.keepalive_interval = std::chrono::milliseconds(1000);
  options.keepalive_timeout = std::chrono::milliseconds(1000);
  return options;
}

void SleepUnless(const std::stop_token& stop, std::chrono::milliseconds duration) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any().wait_for(lock, stop, duration, [] { return false; });
}

}  // namespace

class GroupLink::Stream : public grpc::ClientBidiReactor<v1::RankMessage, v1::GroupMessage> {
 public:
  Stream(const std::string& leader, const v1::RankMessage::Hello& hello)
      : stub_(v1::Group::NewStub(MakeChannel(leader, LinkChannel()))) {
    *hello_.mutable_hello() = hello;
    ready_.mutable_state()->set_ready(true);
    stub_->async()->Join(&context_, this);
    StartWrite(&hello_);
    StartRead(&incoming_);
    StartCall();
  }

  ~Stream() override { Leave(); }

  void Leave() {
    context_.TryCancel();
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }

  // Until the start, the end, or `stop`.
  void Await(std::stop_token stop) {
    const std::stop_callback on_stop(stop, [this] {
      const absl::MutexLock lock(&mutex_);
      stop_ = true;
    });
    const absl::MutexLock lock(&mutex_);
    const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return start_.has_value() || ended_ || stop_;
    };
    mutex_.Await(absl::Condition(&settled));
  }

  std::optional<v1::GroupMessage::Start> start() const {
    const absl::MutexLock lock(&mutex_);
    return start_;
  }
  bool welcome() const {
    const absl::MutexLock lock(&mutex_);
    return welcome_;
  }
  // How the stream ended, if it has.
  std::optional<absl::Status> ended() const {
    const absl::MutexLock lock(&mutex_);
    return ended_ ? std::optional(status_) : std::nullopt;
  }

  void OnEnd(std::function<void()> on_end) {
    {
      const absl::MutexLock lock(&mutex_);
      if (!ended_) {
        on_end_ = std::move(on_end);
        return;
      }
    }
    on_end();
  }

 private:
  void OnWriteDone(bool ok) override {
    if (ok && !std::exchange(said_ready_, true)) StartWrite(&ready_);
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      const absl::MutexLock lock(&mutex_);
      if (incoming_.has_welcome()) welcome_ = true;
      if (incoming_.has_start()) start_ = incoming_.start();
    }
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& status) override {
    std::function<void()> on_end;
    {
      const absl::MutexLock lock(&mutex_);
      status_ = FromGrpc(status);
      ended_ = true;
      on_end = std::move(on_end_);
    }
    if (on_end) on_end();
    const absl::MutexLock lock(&mutex_);
    done_ = true;
  }

  grpc::ClientContext context_;
  std::unique_ptr<v1::Group::Stub> stub_;
  v1::RankMessage hello_, ready_;
  v1::GroupMessage incoming_;
  bool said_ready_ = false;  // of the writing thread

  mutable absl::Mutex mutex_;
  bool welcome_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<v1::GroupMessage::Start> start_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // nothing touches the object any more
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_end_ ABSL_GUARDED_BY(mutex_);
};

GroupLink::GroupLink(std::unique_ptr<Stream> stream)
    : stream_(std::move(stream)), start_(*stream_->start()) {}

GroupLink::~GroupLink() = default;

void GroupLink::Leave() { stream_->Leave(); }

void GroupLink::OnEnd(std::function<void()> on_end) { stream_->OnEnd(std::move(on_end)); }

absl::StatusOr<std::unique_ptr<GroupLink>> GroupLink::Join(const GroupLinkOptions& options,
                                                           const v1::RankMessage::Hello& hello,
                                                           std::stop_token stop) {
  const auto cancelled = MakeStatus(absl::StatusCode::kCancelled, "stopped while joining");
  absl::Time give_up = absl::Now() + absl::FromChrono(options.patience);
  while (true) {
    auto stream = std::make_unique<Stream>(options.leader, hello);
    stream->Await(stop);
    if (stop.stop_requested()) return cancelled;
    if (stream->start()) return std::unique_ptr<GroupLink>(new GroupLink(std::move(stream)));
    const absl::Status status = *stream->ended();
    if (!status.ok() && !absl::IsUnavailable(status)) return status;
    if (stream->welcome()) give_up = absl::Now() + absl::FromChrono(options.patience);
    if (absl::Now() > give_up) {
      return Unavailable("the leader at {} does not answer: {}", options.leader, MessageOf(status));
    }
    spdlog::debug("the leader at {} does not answer yet: {}", options.leader, MessageOf(status));
    SleepUnless(stop, options.retry);
  }
}

}  // namespace facet
