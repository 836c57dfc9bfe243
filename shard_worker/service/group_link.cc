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
#include "shard_worker/service/clock.h"
#include "shard_worker/service/ticker.h"

namespace facet {
namespace {

// The link is how a follower hears that its leader's host has gone silent.
ChannelOptions LinkChannel() {
  ChannelOptions options;
  options.keepalive_interval = std::chrono::milliseconds(1000);
  options.keepalive_timeout = std::chrono::milliseconds(1000);
  return options;
}

constexpr absl::Duration kWaitingPeriod = absl::Milliseconds(250);

void SleepUnless(const std::stop_token& stop, std::chrono::milliseconds duration) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any().wait_for(lock, stop, duration, [] { return false; });
}

}  // namespace

class GroupLink::Stream : public grpc::ClientBidiReactor<v1::RankMessage, v1::GroupMessage> {
 public:
  Stream(const GroupLinkOptions& options, const v1::RankMessage::Hello& hello, ProgressOf progress)
      : options_(options),
        progress_(std::move(progress)),
        stub_(v1::Group::NewStub(MakeChannel(options.leader, LinkChannel()))),
        watch_(options.beat, SteadyNow()),
        last_tick_(SteadyNow()) {
    *outgoing_.mutable_hello() = hello;
    stub_->async()->Join(&context_, this);
    AddHold();  // for the writes of the beats
    StartWrite(&outgoing_);
    StartRead(&incoming_);
    StartCall();
    ticker_.emplace("beat", options.beat.period, [this] { Tick(); });
  }

  ~Stream() override { Leave(); }

  void Leave() {
    ticker_.reset();
    context_.TryCancel();
    const absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }

  // Until the start, the end or `stop`, at most for `timeout`.
  void Await(absl::Duration timeout, std::stop_token stop) {
    const std::stop_callback on_stop(stop, [this] {
      const absl::MutexLock lock(&mutex_);
      stop_ = true;
    });
    const absl::MutexLock lock(&mutex_);
    const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return start_.has_value() || end_.has_value() || stop_;
    };
    mutex_.AwaitWithTimeout(absl::Condition(&settled), timeout);
  }

  std::optional<v1::GroupMessage::Start> start() const {
    const absl::MutexLock lock(&mutex_);
    return end_ ? std::nullopt : start_;
  }
  // Whether the leader has said anything at all.
  bool heard() const {
    const absl::MutexLock lock(&mutex_);
    return heard_;
  }
  // How the stream ended, if it has.
  std::optional<Break> end() const {
    const absl::MutexLock lock(&mutex_);
    return end_;
  }

  void OnEnd(std::function<void(const Break&)> on_end) {
    Break end;
    {
      const absl::MutexLock lock(&mutex_);
      if (!end_) {
        on_end_ = std::move(on_end);
        return;
      }
      end = *end_;
    }
    on_end(end);
  }

 private:
  // On the thread of the beats.
  void Tick() {
    const RankProgress progress = progress_();
    const TimeUs now = SteadyNow();
    bool dead;
    {
      const absl::MutexLock lock(&mutex_);
      // A process that was stopped has heard nobody meanwhile.
      const TimeUs pause = now - std::exchange(last_tick_, now) - options_.beat.period;
      if (pause >= 2 * options_.beat.period) watch_.Excuse(pause);
      if (!given_up_) given_up_ = watch_.Dead("the leader", now);  // no way back: it is cancelled
      dead = given_up_.has_value();
      if (!dead && !writing_ && !closed_) Write(progress);
    }
    if (dead) context_.TryCancel();  // OnDone() follows at once
  }

  void Write(const RankProgress& progress) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    writing_ = true;
    outgoing_.Clear();
    v1::RankMessage::RankState* state = outgoing_.mutable_state();
    state->set_ready(true);
    state->set_progress(progress.moved);
    state->set_in_step(progress.in_step);
    StartWrite(&outgoing_);
  }

  void OnWriteDone(bool ok) override {
    const RankProgress progress = progress_();
    const absl::MutexLock lock(&mutex_);
    writing_ = false;
    if (ok && !closed_ && !std::exchange(said_ready_, true)) Write(progress);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      const absl::MutexLock lock(&mutex_);
      closed_ = true;
      RemoveHold();
      return;
    }
    {
      const absl::MutexLock lock(&mutex_);
      heard_ = true;
      watch_.Heard(SteadyNow());
      if (incoming_.has_start()) start_ = incoming_.start();
      if (incoming_.has_beat()) {
        watch_.Beat({incoming_.beat().progress(), incoming_.beat().in_step()}, SteadyNow());
      }
    }
    StartRead(&incoming_);
  }

  void OnDone(const grpc::Status& status) override {
    std::function<void(const Break&)> on_end;
    Break end{BreakCause::kPeerGone,
              status.ok() ? Unavailable("the leader has gone") : FromGrpc(status)};
    {
      const absl::MutexLock lock(&mutex_);
      if (given_up_) end = *given_up_;
      end_ = end;
      on_end = std::move(on_end_);
    }
    if (on_end) on_end(end);
    const absl::MutexLock lock(&mutex_);
    done_ = true;
  }

  const GroupLinkOptions options_;
  const ProgressOf progress_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::Group::Stub> stub_;
  v1::GroupMessage incoming_;

  mutable absl::Mutex mutex_;
  v1::RankMessage outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = true;  // the hello
  bool said_ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;  // nothing more is written
  PeerWatch watch_ ABSL_GUARDED_BY(mutex_);
  TimeUs last_tick_ ABSL_GUARDED_BY(mutex_);
  std::optional<Break> given_up_ ABSL_GUARDED_BY(mutex_);
  bool heard_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<v1::GroupMessage::Start> start_ ABSL_GUARDED_BY(mutex_);
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Break> end_ ABSL_GUARDED_BY(mutex_);
  bool done_ ABSL_GUARDED_BY(mutex_) = false;  // nothing touches the object any more
  std::function<void(const Break&)> on_end_ ABSL_GUARDED_BY(mutex_);
  std::optional<Ticker> ticker_;
};

GroupLink::GroupLink(std::unique_ptr<Stream> stream, const v1::GroupMessage::Start& start)
    : stream_(std::move(stream)), start_(start) {}

GroupLink::~GroupLink() = default;

void GroupLink::Leave() { stream_->Leave(); }

void GroupLink::OnEnd(std::function<void(const Break&)> on_end) {
  stream_->OnEnd(std::move(on_end));
}

absl::StatusOr<std::unique_ptr<GroupLink>> GroupLink::Join(const GroupLinkOptions& options,
                                                           const v1::RankMessage::Hello& hello,
                                                           ProgressOf progress,
                                                           const std::function<void()>& waiting,
                                                           std::stop_token stop) {
  const TimeUs patience = options.patience.count() * 1000;
  TimeUs give_up = SteadyNow() + patience;
  while (true) {
    auto stream = std::make_unique<Stream>(options, hello, progress);
    while (!stream->start() && !stream->end() && !stop.stop_requested()) {
      stream->Await(kWaitingPeriod, stop);
      waiting();
    }
    if (stop.stop_requested()) {
      return MakeStatus(absl::StatusCode::kCancelled, "stopped while joining");
    }
    if (const auto start = stream->start()) {
      return std::unique_ptr<GroupLink>(new GroupLink(std::move(stream), *start));
    }
    const absl::Status status = stream->end()->status;
    if (!status.ok() && !absl::IsUnavailable(status)) return status;
    if (stream->heard()) give_up = SteadyNow() + patience;
    if (SteadyNow() > give_up) {
      return Unavailable("the leader at {} does not answer: {}", options.leader, MessageOf(status));
    }
    spdlog::debug("the leader at {} does not answer yet: {}", options.leader, MessageOf(status));
    SleepUnless(stop, options.retry);
  }
}

}  // namespace facet
