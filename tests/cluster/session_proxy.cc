#include "tests/cluster/session_proxy.h"

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <utility>

#include "base/status.h"
#include "serving/grpc_channel.h"

namespace facet::testing {
namespace {

class Relay;

// The proxy's own session with the leader; calls its relay back.
class Upstream : public grpc::ClientBidiReactor<v1::RouterMessage, v1::LeaderMessage> {
 public:
  explicit Upstream(Relay& relay) : relay_(relay) {}

  grpc::ClientContext& context() { return context_; }

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  Relay& relay_;
  grpc::ClientContext context_;
};

// One session: one message at a time in each direction. Deletes itself when gRPC is done with both
// of its sides.
class Relay : public grpc::ServerBidiReactor<v1::RouterMessage, v1::LeaderMessage> {
 public:
  Relay(v1::Leader::Stub& leader, SessionCutter& cutter) : cutter_(cutter), upstream_(*this) {
    leader.async()->Session(&upstream_.context(), &upstream_);
    upstream_.AddHold();  // its operations start in the other side's callbacks
    upstream_.StartRead(&down_);
    upstream_.StartCall();
    StartRead(&up_);
  }

  void OnLeaderSpoke(bool ok) {
    const std::lock_guard lock(mutex_);
    if (!ok || ended_) return;
    const SessionCutter::Verdict verdict = cutter_.Judge(down_);
    if (verdict == SessionCutter::Verdict::kCut) return Cut();
    cut_after_write_ = verdict == SessionCutter::Verdict::kPassAndCut;
    StartWrite(&down_);
  }

  void OnLeaderHeard(bool ok) {
    const std::lock_guard lock(mutex_);
    if (ok && !ended_) StartRead(&up_);
  }

  void OnLeaderDone(const grpc::Status& status) {
    {
      const std::lock_guard lock(mutex_);
      End(status);
    }
    Release();
  }

 private:
  void OnReadDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    if (ok) {
      upstream_.StartWrite(&up_);
    } else {
      upstream_.StartWritesDone();
    }
  }

  void OnWriteDone(bool ok) override {
    const std::lock_guard lock(mutex_);
    if (!ok || ended_) return;
    if (cut_after_write_) return Cut();
    upstream_.StartRead(&down_);
  }

  void OnCancel() override {
    const std::lock_guard lock(mutex_);
    End(grpc::Status::CANCELLED);
  }

  void OnDone() override { Release(); }

  void Cut() { End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "cut by the test")); }

  // Ends both sides. The lock is held.
  void End(const grpc::Status& status) {
    if (std::exchange(ended_, true)) return;
    Finish(status);
    upstream_.context().TryCancel();
    upstream_.RemoveHold();
  }

  void Release() {
    bool last = false;
    {
      const std::lock_guard lock(mutex_);
      last = ++sides_done_ == 2;
    }
    if (last) delete this;
  }

  SessionCutter& cutter_;
  Upstream upstream_;
  v1::RouterMessage up_;
  v1::LeaderMessage down_;
  std::mutex mutex_;
  bool cut_after_write_ = false;
  bool ended_ = false;
  int sides_done_ = 0;
};

void Upstream::OnReadDone(bool ok) { relay_.OnLeaderSpoke(ok); }
void Upstream::OnWriteDone(bool ok) { relay_.OnLeaderHeard(ok); }
void Upstream::OnDone(const grpc::Status& status) { relay_.OnLeaderDone(status); }

}  // namespace

void SessionCutter::Arm(int token, bool deliver) {
  const std::lock_guard lock(mutex_);
  order_ = Order{.token = token, .deliver = deliver};
  has_cut_ = false;
}

bool SessionCutter::has_cut() const {
  const std::lock_guard lock(mutex_);
  return has_cut_;
}

SessionCutter::Verdict SessionCutter::Judge(const v1::LeaderMessage& message) {
  const std::lock_guard lock(mutex_);
  for (const v1::SequenceDelta& delta : message.deltas()) {
    if (!order_ || delta.offset() + delta.tokens_size() <= order_->token) continue;
    has_cut_ = true;
    return std::exchange(order_, std::nullopt)->deliver ? Verdict::kPassAndCut : Verdict::kCut;
  }
  return Verdict::kPass;
}

class SessionProxy::Service : public v1::Leader::CallbackService {
 public:
  Service(const std::string& leader, SessionCutter* cutter)
      : leader_(v1::Leader::NewStub(MakeChannel(leader))), cutter_(cutter) {}

 private:
  grpc::ServerBidiReactor<v1::RouterMessage, v1::LeaderMessage>* Session(
      grpc::CallbackServerContext*) override {
    return new Relay(*leader_, *cutter_);
  }

  const std::unique_ptr<v1::Leader::Stub> leader_;
  SessionCutter* const cutter_;
};

absl::StatusOr<std::unique_ptr<SessionProxy>> SessionProxy::Start(const std::string& listen,
                                                                  const std::string& leader,
                                                                  SessionCutter* cutter) {
  std::unique_ptr<SessionProxy> proxy(new SessionProxy(std::make_unique<Service>(leader, cutter)));
  grpc::ServerBuilder builder;
  builder.RegisterService(proxy->service_.get());
  FACET_ASSIGN_OR_RETURN(proxy->running_, StartGrpcServer(builder, {.listen = listen}));
  return proxy;
}

SessionProxy::SessionProxy(std::unique_ptr<Service> service) : service_(std::move(service)) {}

SessionProxy::~SessionProxy() {
  if (running_.server != nullptr) ShutDown(*running_.server, std::chrono::milliseconds(0));
}

}  // namespace facet::testing
