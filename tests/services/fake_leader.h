#ifndef FACET_TESTS_SERVICES_FAKE_LEADER_H_
#define FACET_TESTS_SERVICES_FAKE_LEADER_H_

// A leader without a model behind it, for tests of whatever speaks to leaders: its tokens follow a
// script that depends on the sequence's seed and the output position only, as real ones do.

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/ids.h"
#include "facet/v1/shard.grpc.pb.h"
#include "tests/base/patience.h"

namespace facet::testing {

// Thread-safe.
class FakeLeader : public v1::Leader::Service {
 public:
  // The token of a sequence at an output position.
  using Script = std::function<TokenId(const v1::Submit& submit, int position)>;
  struct Options {
    std::string address;  // unix:/path
    v1::ModelInfo model;
    int64_t credit_tokens = 1 << 20;
    Script script;
    int tokens_per_message = 1;
    bool remembers_submits = true;  // submits() grows with each one
  };

  explicit FakeLeader(Options options) : options_(std::move(options)) { Start(); }
  ~FakeLeader() override { Kill(); }

  void Start() {
    dead_ = false;
    grpc::ServerBuilder builder;
    builder.AddListeningPort(options_.address, grpc::InsecureServerCredentials());
    builder.SetMaxReceiveMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
    FACET_CHECK(server_ != nullptr, "{}", options_.address);
  }

  // Ends all sessions, as a dying process would.
  void Kill() {
    if (server_ == nullptr) return;
    {
      std::lock_guard lock(mutex_);
      dead_ = true;
    }
    changed_.notify_all();
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  // No sequence emits a token at or beyond this output position until it is raised.
  void HoldAt(int position) {
    {
      std::lock_guard lock(mutex_);
      hold_at_ = position;
    }
    changed_.notify_all();
  }
  void Release() { HoldAt(1 << 30); }

  // Says nothing any more, as a process that hangs.
  void Mute() {
    std::lock_guard lock(mutex_);
    mute_ = true;
  }

  // Every sequence now running leaves out its next `tokens`, as a faulty leader would.
  void SkipTokens(int tokens) {
    std::lock_guard lock(mutex_);
    for (RouterSession* session : sessions_) {
      for (auto& [number, running] : session->running) running.emitted += tokens;
    }
  }

  // What it says of its steps once a router has asked.
  void SetProfile(v1::StepProfile profile) {
    std::lock_guard lock(mutex_);
    profile_ = std::move(profile);
  }

  // True once `condition` holds; false after a long time. Of this object it may call cancels_seen()
  // only, since the lock is held.
  bool Wait(const std::function<bool(const FakeLeader&)>& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, kLong, [&] { return condition(*this); });
  }
  bool WaitForSubmits(size_t count) {
    return Wait([count](const FakeLeader& leader) { return leader.submits_.size() >= count; });
  }
  bool WaitUntilIdle() {
    return Wait([](const FakeLeader& leader) {
      return std::all_of(leader.sessions_.begin(), leader.sessions_.end(),
                         [](const RouterSession* session) { return session->running.empty(); });
    });
  }

  int64_t profile_us() const {
    std::lock_guard lock(mutex_);
    return profile_us_;
  }
  std::vector<v1::Submit> submits() const {
    std::lock_guard lock(mutex_);
    return submits_;
  }
  int cancels() const {
    std::lock_guard lock(mutex_);
    return cancels_;
  }
  int cancels_seen() const { return cancels_; }  // inside Wait()

 private:
  using Stream = grpc::ServerReaderWriter<v1::LeaderMessage, v1::RouterMessage>;
  struct Running {
    v1::Submit submit;
    int emitted = 0;
    int prompt_scored = 1;
    bool cancelled = false;
  };

  // What one router has here.
  struct RouterSession {
    std::map<uint64_t, Running> running;
    int64_t received = 0;  // submits
    bool ended = false;
  };

  grpc::Status Session(grpc::ServerContext*, Stream* stream) override {
    RouterSession session;
    v1::LeaderMessage hello;
    *hello.mutable_state() = State(session);
    *hello.mutable_state()->mutable_model() = options_.model;
    stream->Write(hello);
    {
      std::lock_guard lock(mutex_);
      sessions_.insert(&session);
    }
    std::thread writer([&] { Emit(*stream, session); });
    v1::RouterMessage message;
    while (stream->Read(&message)) Take(message, session);
    {
      std::lock_guard lock(mutex_);
      session.ended = true;
      sessions_.erase(&session);
    }
    changed_.notify_all();
    writer.join();
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the fake leader has stopped");
  }

  void Take(const v1::RouterMessage& message, RouterSession& session) {
    {
      std::lock_guard lock(mutex_);
      for (const v1::Submit& submit : message.submits()) {
        if (options_.remembers_submits) submits_.push_back(submit);
        ++session.received;
        session.running[submit.sequence()] = {submit,
                                              submit.tokens_size() - submit.prompt_length()};
      }
      if (message.has_profile_us()) profile_us_ = message.profile_us();
      for (const v1::Cancel& cancel : message.cancels()) {
        ++cancels_;
        const auto found = session.running.find(cancel.sequence());
        if (found != session.running.end()) found->second.cancelled = true;
      }
    }
    changed_.notify_all();
  }

  v1::LeaderState State(const RouterSession& session) const {
    v1::LeaderState state;
    state.set_ranks(2);
    state.set_device("fake");
    state.set_running(static_cast<int64_t>(session.running.size()));
    state.set_credit_tokens(options_.credit_tokens);
    state.set_submits_received(session.received);
    state.set_kv_tokens_total(1000);
    if (profile_us_ > 0) *state.mutable_profile() = profile_;
    return state;
  }

  // Steps until the session ends.
  void Emit(Stream& stream, RouterSession& session) {
    for (;;) {
      v1::LeaderMessage message;
      {
        std::unique_lock lock(mutex_);
        changed_.wait_for(lock, std::chrono::milliseconds(500),
                          [&] { return session.ended || dead_ || CanStep(session); });
        if (session.ended || dead_) return;
        if (mute_) continue;
        message = Step(session);
        *message.mutable_state() = State(session);
      }
      changed_.notify_all();
      if (!stream.Write(message)) return;
    }
  }

  bool CanStep(const RouterSession& session) const {
    if (mute_) return false;
    for (const auto& [number, running] : session.running) {
      if (running.cancelled || running.emitted < hold_at_) return true;
    }
    return false;
  }

  v1::LeaderMessage Step(RouterSession& session) {
    v1::LeaderMessage message;
    for (auto it = session.running.begin(); it != session.running.end();) {
      Running& running = it->second;
      v1::SequenceDelta delta;
      delta.set_sequence(it->first);
      delta.set_offset(running.emitted);
      if (running.cancelled) {
        delta.set_finish(v1::FINISH_REASON_CANCELLED);
      } else if (running.submit.logits_digest()) {  // as workers do that do not allow it
        delta.set_finish(v1::FINISH_REASON_ERROR);
        delta.set_error_code(grpc::StatusCode::UNIMPLEMENTED);
        delta.set_error("logits_digest: the workers run without --allow_logits_digest");
      } else {
        ScorePrompt(running, delta);
        for (int i = 0; i < options_.tokens_per_message && !Ended(delta); ++i) {
          if (running.emitted >= hold_at_) break;
          AddToken(running, delta);
        }
      }
      const bool finished = Ended(delta);
      if (finished) {
        delta.set_cached_tokens(1);
        delta.set_queue_us(10);
        delta.set_prefill_us(20);
        delta.set_decode_us(30);
      }
      if (finished || delta.tokens_size() + delta.prompt_size() > 0) {
        *message.add_deltas() = std::move(delta);
      }
      it = finished ? session.running.erase(it) : std::next(it);
    }
    return message;
  }

  static bool Ended(const v1::SequenceDelta& delta) {
    return delta.finish() != v1::FINISH_REASON_UNSPECIFIED;
  }

  static void ScorePrompt(Running& running, v1::SequenceDelta& delta) {
    if (!running.submit.prompt_logprobs()) return;
    delta.set_prompt_offset(running.prompt_scored);
    for (; running.prompt_scored < running.submit.prompt_length(); ++running.prompt_scored) {
      v1::OutputToken& token = *delta.add_prompt();
      token.set_id(running.submit.tokens(running.prompt_scored));
      token.set_logprob(-0.5f * static_cast<float>(running.prompt_scored));
    }
  }

  void AddToken(Running& running, v1::SequenceDelta& delta) {
    const v1::Submit& submit = running.submit;
    v1::OutputToken& token = *delta.add_tokens();
    token.set_logprob(-0.25f - 0.125f * static_cast<float>(running.emitted));
    token.set_id(options_.script(submit, running.emitted++));
    for (int i = 0; i < submit.logprobs(); ++i) {
      v1::TokenLogprob& top = *token.add_top();
      top.set_id(i);
      top.set_logprob(token.logprob() - static_cast<float>(i));
    }
    for (const int32_t stop : submit.stop_token_ids()) {
      if (token.id() == stop) delta.set_finish(v1::FINISH_REASON_STOP);
    }
    if (!Ended(delta) && running.emitted >= submit.max_tokens()) {
      delta.set_finish(v1::FINISH_REASON_LENGTH);
    }
  }

  const Options options_;
  std::unique_ptr<grpc::Server> server_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool dead_ = false;
  bool mute_ = false;
  int hold_at_ = 1 << 30;
  int cancels_ = 0;
  int64_t profile_us_ = 0;  // as last asked for
  v1::StepProfile profile_;
  std::set<RouterSession*> sessions_;
  std::vector<v1::Submit> submits_;  // all there ever were
};

}  // namespace facet::testing

#endif  // FACET_TESTS_SERVICES_FAKE_LEADER_H_
