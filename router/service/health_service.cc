#include "router/service/health_service.h"

#include <grpcpp/server_context.h>
#include <grpcpp/support/async_stream.h>

#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <utility>

#include "absl/functional/function_ref.h"
#include "base/status.h"
#include "router/service/serial_thread.h"
#include "router/service/unary_call.h"
#include "serving/grpc_status.h"

namespace facet {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

// A stream of the statuses of one service: one write under way, then the latest status, if it is
// another. It ends when its client goes or the server is shut down. The service's lock guards it.
class HealthService::Watch : public IncomingCall {
 public:
  explicit Watch(HealthService* service) : service_(*service) {}

  void Take() override {
    service_.live_calls_.Begin(*this);
    Note([this] {
      taken_ = true;
      Begin();
    });
  }

  // Says what the client has not heard yet.
  void Tell() {
    if (writing() || call_done_) return;
    const Status status = service_.StatusOf(call_->request.service());
    if (told_ == status) return;
    told_ = status;
    NoteWriting();
    HealthCheckResponse response;
    response.set_status(status);
    call_->writer.Write(response, static_cast<QueueEvent*>(&written_));
  }

 private:
  struct Call {
    grpc::ServerContext context;
    HealthCheckRequest request;
    grpc::ServerAsyncWriter<HealthCheckResponse> writer{&context};
  };

  void Request(grpc::ServerCompletionQueue& queue, void* tag) override {
    call_->context.AsyncNotifyWhenDone(static_cast<QueueEvent*>(&call_done_event_));
    service_.RequestWatch(&call_->context, &call_->request, &call_->writer, &queue, &queue, tag);
  }

  void Cancel() override { call_->context.TryCancel(); }

  void Begin() {
    if (call_done_) return;
    const int watches_max = service_.options_.watches_max;
    if (std::ssize(service_.watches_) < watches_max) {
      service_.watches_.insert(this);
      return Tell();
    }
    NoteWriting();
    call_->writer.Finish(ToGrpc(ResourceExhausted("{} streams watch already", watches_max)),
                         static_cast<QueueEvent*>(&written_));
  }

  bool OnWritten(bool ok) {
    Note([this, ok] {
      NoteWritten();
      if (!ok) service_.watches_.erase(this);
      if (service_.watches_.count(this) > 0) Tell();
    });
    return false;  // the core's thread need not take a turn
  }

  bool OnCallDone(bool) {
    Note([this] { call_done_ = true; });
    return false;
  }

  // Takes note of what has happened, and lets go of the call if nothing of it is under way any
  // more: in one hold of the lock, so that one thread finds it over. For the others this may be
  // gone as soon as they let the lock go.
  void Note(absl::FunctionRef<void()> what) {
    std::shared_ptr<IncomingCall> self;
    {
      const absl::MutexLock lock(&service_.mutex_);
      what();
      if (!taken_ || writing() || !call_done_) return;
      service_.watches_.erase(this);
      call_.reset();  // the server may go once it is not live any more
      self = std::move(self_);
    }
    service_.live_calls_.End(*this);
  }

  HealthService& service_;
  MemberEvent<&Watch::OnWritten> written_{this};
  MemberEvent<&Watch::OnCallDone> call_done_event_{this};
  std::unique_ptr<Call> call_ = std::make_unique<Call>();  // null when it is over
  std::optional<Status> told_;
  bool taken_ = false;
  bool call_done_ = false;  // gRPC has no more to say of it
};

HealthService::HealthService(const HealthOptions& options,
                             std::initializer_list<std::string_view> services)
    : options_(options) {
  for (const std::string_view service : services) serving_.emplace(service, false);
}

void HealthService::Set(std::string_view service, bool serving) {
  const absl::MutexLock lock(&mutex_);
  serving_.insert_or_assign(std::string(service), serving);
  for (Watch* watch : watches_) watch->Tell();
}

void HealthService::Close() {
  const absl::MutexLock lock(&mutex_);
  closed_ = true;
  for (Watch* watch : watches_) watch->Tell();
}

HealthService::Status HealthService::StatusOf(const std::string& service) const {
  const auto found = serving_.find(service);
  if (found == serving_.end()) return HealthCheckResponse::SERVICE_UNKNOWN;
  return found->second && !closed_ ? HealthCheckResponse::SERVING
                                   : HealthCheckResponse::NOT_SERVING;
}

grpc::Status HealthService::Answer(const std::string& service,
                                   HealthCheckResponse& response) const {
  const absl::MutexLock lock(&mutex_);
  const Status status = StatusOf(service);
  if (status == HealthCheckResponse::SERVICE_UNKNOWN) {
    return ToGrpc(NotFound("service: '{}' is not known", service));
  }
  response.set_status(status);
  return grpc::Status::OK;
}

std::vector<AcceptedMethod> HealthService::Methods() {
  using Check = UnaryCall<HealthCheckRequest, HealthCheckResponse>;
  const auto check = [this](const std::shared_ptr<Check>& call) {
    call->Finish(Answer(call->request().service(), call->response()));
  };
  return {AcceptUnary<HealthCheckRequest, HealthCheckResponse>(
              std::bind_front(&HealthService::RequestCheck, this), check, live_calls_),
          {.make = [this] { return std::make_shared<Watch>(this); }}};
}

}  // namespace facet
