#include "router/service/leader_session.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "base/status.h"
#include "serving/grpc_channel.h"

namespace facet {
namespace {

constexpr TimeUs kRateWindowUs = 5'000'000;
constexpr int kMessageBytesMax = 64 << 20;
// What a leader says while we are busy waits with the leader, where it merges into fewer messages.
constexpr int kWindowBytes = 64 << 10;

std::shared_ptr<grpc::Channel> MakeLeaderChannel(const LeaderSessionOptions& options) {
  ChannelOptions channel;
  channel.keepalive_interval = options.keepalive_interval;
  channel.keepalive_timeout = options.keepalive_timeout;
  channel.reconnect_backoff_max = std::chrono::milliseconds(options.backoff_max_us / 1000);
  channel.message_bytes_max = kMessageBytesMax;
  channel.stream_window_bytes = kWindowBytes;
  return MakeChannel(options.address, channel);
}

std::optional<EndReason> EndReasonOf(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_UNSPECIFIED:
      return std::nullopt;
    case v1::FINISH_REASON_STOP:
      return EndReason::kStop;
    case v1::FINISH_REASON_LENGTH:
      return EndReason::kLength;
    case v1::FINISH_REASON_CANCELLED:
      return EndReason::kCancelled;
    case v1::FINISH_REASON_DEADLINE:
      return EndReason::kDeadline;
    default:
      return EndReason::kError;
  }
}

std::vector<OutputToken> TokensOf(
    const google::protobuf::RepeatedPtrField<v1::OutputToken>& tokens) {
  std::vector<OutputToken> out;
  out.reserve(tokens.size());
  for (const v1::OutputToken& token : tokens) {
    OutputToken& copy = out.emplace_back(OutputToken{token.id(), token.logprob(), {}});
    for (const v1::TokenLogprob& top : token.top()) copy.top.emplace_back(top.id(), top.logprob());
  }
  return out;
}

LeaderDelta DeltaOf(v1::SequenceDelta& delta) {
  LeaderDelta out{.sequence = SequenceId{delta.sequence()},
                  .offset = delta.offset(),
                  .tokens = TokensOf(delta.tokens()),
                  .prompt_offset = delta.prompt_offset(),
                  .prompt = TokensOf(delta.prompt()),
                  .finish = EndReasonOf(delta.finish()),
                  .cached_tokens = delta.cached_tokens(),
                  .queue_us = delta.queue_us(),
                  .prefill_us = delta.prefill_us(),
                  .decode_us = delta.decode_us(),
                  .logits_sha256 = std::move(*delta.mutable_logits_sha256())};
  if (out.finish == EndReason::kError) {
    const bool known = delta.error_code() > 0 && delta.error_code() <= 16;
    out.error = MakeStatus(
        known ? static_cast<absl::StatusCode>(delta.error_code()) : absl::StatusCode::kInternal,
        delta.error());
  }
  return out;
}

// gRPC puts a preamble before the reason that helps.
std::string ReasonOf(const absl::Status& status) {
  if (status.ok()) return "the leader ended the session";
  const std::string message = MessageOf(status);
  constexpr std::string_view kPreamble = "last error: ";
  const size_t found = message.rfind(kPreamble);
  return found == std::string::npos ? message : message.substr(found + kPreamble.size());
}

GroupState StateOf(const v1::LeaderState& state) {
  GroupState out{.running = state.running(),
                 .waiting = state.waiting(),
                 .credit_tokens = state.credit_tokens(),
                 .draining = state.draining(),
                 .pending_prompt_tokens = state.pending_prompt_tokens(),
                 .prefill_tokens_per_s = state.prefill_tokens_per_s()};
  if (state.has_submits_received()) out.submits_received = state.submits_received();
  return out;
}

GroupCacheNews NewsOf(const v1::CacheNews& news) {
  return {.reset = news.reset(),
          .stored = {news.stored().begin(), news.stored().end()},
          .evicted = {news.evicted().begin(), news.evicted().end()}};
}

}  // namespace

LeaderSession::LeaderSession(GroupId group, LeaderSessionOptions options, SerialThread& thread,
                             Listener& listener)
    : group_(group),
      options_(std::move(options)),
      thread_(thread),
      listener_(listener),
      channel_(MakeLeaderChannel(options_)),
      stub_(v1::Leader::NewStub(channel_)),
      backoff_us_(options_.backoff_min_us) {
  status_.set_address(options_.address);
  status_.set_state("connecting");
}

TimeUs LeaderSession::Tick(TimeUs now) {
  if (closing_) return kNever;
  if (tick_due_ != kNever && now - tick_due_ > options_.standstill_us) last_heard_ = now;
  return tick_due_ = ConnectOrGiveUp(now);
}

TimeUs LeaderSession::ConnectOrGiveUp(TimeUs now) {
  if (stream_ == nullptr) {
    if (now < connect_at_) return connect_at_;
    Connect();
    last_heard_ = now;
  }
  const TimeUs silent_at = last_heard_ + options_.silence_max_us;
  if (now < silent_at) return silent_at;
  GiveUp(fmt::format("silent for {} s", options_.silence_max_us / 1'000'000));
  return kNever;  // until the call has ended
}

void LeaderSession::Connect() {
  give_up_reason_.clear();
  // The pauses between two attempts are ours alone.
  grpc::experimental::ChannelResetConnectionBackoff(channel_.get());
  stream_ =
      LeaderStream::Start(*stub_, thread_.queue(),
                          {.on_message = [this](v1::LeaderMessage& message) { OnMessage(message); },
                           .on_end = [this](const absl::Status& status) { OnEnd(status); }});
}

void LeaderSession::OnMessage(v1::LeaderMessage& message) {
  last_heard_ = MonotonicNow();
  const bool given_up = closing_ || !give_up_reason_.empty();
  if (!given_up && (up_ || Welcome(message))) Take(message);
  stream_->ReadNext();  // also after giving up: the call ends with a read that fails
}

void LeaderSession::Take(v1::LeaderMessage& message) {
  for (v1::SequenceDelta& delta : *message.mutable_deltas()) {
    if (delta.offset() < 0 || delta.prompt_offset() < 0) return GiveUp("sent a negative offset");
    listener_.OnLeaderDelta(group_, DeltaOf(delta));
  }
  if (message.has_cache()) listener_.OnLeaderCacheNews(group_, NewsOf(message.cache()));
  if (message.has_state()) NoteState(message.state(), last_heard_);
}

bool LeaderSession::Welcome(const v1::LeaderMessage& message) {
  const v1::ModelInfo& model = message.state().model();
  if (!message.state().has_model() || model.context_tokens() <= 0) {
    GiveUp("did not begin with its model");
    return false;
  }
  if (model.digest() != options_.model_digest) {
    GiveUp(fmt::format("serves another model ({}, digest {:016x})", model.name(), model.digest()));
    return false;
  }
  up_ = true;
  backoff_us_ = options_.backoff_min_us;
  samples_.clear();
  *status_.mutable_model() = model;
  status_.set_ready(true);
  spdlog::info("group {} is ready: {} rank(s) on {}", options_.address, message.state().ranks(),
               message.state().device());
  listener_.OnLeaderUp(group_, {.fingerprint = model.fingerprint(),
                                .context_tokens = model.context_tokens(),
                                .block_tokens = std::max(0, message.state().block_tokens()),
                                .epoch = message.state().epoch(),
                                .slots = std::max(0, message.state().slots())});
  return true;
}

void LeaderSession::NoteState(const v1::LeaderState& state, TimeUs now) {
  if (state.ranks() > 0) status_.set_ranks(state.ranks());
  if (!state.device().empty()) status_.set_device(state.device());
  status_.set_state(state.draining() ? "draining" : "ready");
  status_.set_ready(!state.draining());
  status_.set_running(state.running());
  status_.set_waiting(state.waiting());
  status_.set_kv_tokens_used(state.kv_tokens_used());
  status_.set_kv_tokens_total(state.kv_tokens_total());
  if (state.has_profile()) *status_.mutable_profile() = state.profile();
  NoteRates(state, now);
  listener_.OnLeaderState(group_, StateOf(state));
}

void LeaderSession::NoteRates(const v1::LeaderState& state, TimeUs now) {
  // A sample every 250 ms is enough for a mean over seconds.
  if (samples_.empty() || now - samples_.back().at >= 250'000) {
    samples_.push_back({now, state.prompt_tokens_done(), state.output_tokens_done()});
  }
  while (samples_.size() > 2 && now - samples_[1].at >= kRateWindowUs) samples_.pop_front();
  const Sample& first = samples_.front();
  const double seconds = static_cast<double>(now - first.at) / 1e6;
  if (seconds <= 0) return;
  status_.set_prompt_tokens_per_s(
      static_cast<double>(state.prompt_tokens_done() - first.prompt_tokens) / seconds);
  status_.set_output_tokens_per_s(
      static_cast<double>(state.output_tokens_done() - first.output_tokens) / seconds);
}

void LeaderSession::GiveUp(std::string reason) {
  if (give_up_reason_.empty()) give_up_reason_ = std::move(reason);
  stream_->Cancel();
}

void LeaderSession::OnEnd(const absl::Status& status) {
  stream_.reset();
  const std::string reason = give_up_reason_.empty() ? ReasonOf(status) : give_up_reason_;
  if (!closing_ && status_.state() != "down: " + reason) {
    spdlog::warn("group {} is down: {}", options_.address, reason);
  }
  v1::GroupStatus down;
  down.set_address(options_.address);
  down.set_state("down: " + reason);
  *down.mutable_model() = status_.model();
  status_ = std::move(down);
  connect_at_ = MonotonicNow() + backoff_us_;
  backoff_us_ = std::min(2 * backoff_us_, options_.backoff_max_us);
  if (std::exchange(up_, false)) listener_.OnLeaderDown(group_);
  closing_ = closing_ || leaving_;
  if (closing_) listener_.OnLeaderClosed(group_);
}

void LeaderSession::Send(v1::RouterMessage message) {
  if (up_) stream_->Send(std::move(message));
}

void LeaderSession::SetLeaving(bool leaving) {
  leaving_ = leaving;
  if (leaving_ && !up_) Close();
}

void LeaderSession::Close() {
  if (std::exchange(closing_, true)) return;
  if (stream_ == nullptr) return listener_.OnLeaderClosed(group_);
  stream_->Cancel();
}

}  // namespace facet
