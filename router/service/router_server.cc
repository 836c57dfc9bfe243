#include "router/service/router_server.h"

#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace facet {
namespace {

// For the last words of streams that another router goes on with.
constexpr absl::Duration kGoodbye = absl::Seconds(1);
constexpr absl::Duration kLinger = absl::Milliseconds(200);

}  // namespace

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Start(const RouterOptions& options,
                                                                  prometheus::Registry& registry) {
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<ServedModel> model,
                         ServedModel::Load(options.model_path, options.model_name));
  std::unique_ptr<RouterServer> router(new RouterServer(options, std::move(model), registry));
  FACET_RETURN_IF_ERROR(router->Listen(options));
  return router;
}

RouterServer::RouterServer(const RouterOptions& options, std::unique_ptr<ServedModel> model,
                           prometheus::Registry& registry)
    : model_(std::move(model)),
      metrics_(registry),
      dispatcher_(options.dispatcher, *model_, metrics_, [this](bool ready) { SetReady(ready); }),
      inference_(options.inference, *model_, metrics_, dispatcher_),
      models_(*model_, dispatcher_),
      status_(dispatcher_) {}

RouterServer::~RouterServer() {
  if (running_.server != nullptr) Stop();
}

absl::Status RouterServer::Listen(const RouterOptions& options) {
  grpc::ServerBuilder builder;
  builder.RegisterService(&inference_);
  builder.RegisterService(&models_);
  builder.RegisterService(&status_);
  acceptor_ = std::make_unique<CallAcceptor>(options.acceptor, Methods(), dispatcher_.queue(),
                                             builder.AddCompletionQueue());
  FACET_ASSIGN_OR_RETURN(running_, StartGrpcServer(builder, options.server));
  acceptor_->Start();
  absl::MutexLock lock(&health_mutex_);
  health_ = running_.server->GetHealthCheckService();
  // The process as a whole serves also while its groups are away: requests wait for them.
  health_->SetServingStatus("", true);
  health_->SetServingStatus("facet.v1.Models", true);
  health_->SetServingStatus("facet.v1.Status", true);
  health_->SetServingStatus("facet.v1.Inference", ready_);
  return absl::OkStatus();
}

std::vector<AcceptedMethod> RouterServer::Methods() {
  LiveCalls& live = inference_.live_calls();
  std::vector<AcceptedMethod> all = inference_.Methods();
  for (const auto& some : {models_.Methods(live), status_.Methods(live)}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

void RouterServer::SetReady(bool ready) {
  absl::MutexLock lock(&health_mutex_);
  ready_ = ready;
  if (health_ != nullptr) health_->SetServingStatus("facet.v1.Inference", ready);
}

void RouterServer::Drain(std::chrono::milliseconds grace) {
  if (running_.server == nullptr) return;
  ForgetHealth();
  inference_.live_calls().Close();
  if (!inference_.live_calls().WaitForNone(absl::FromChrono(grace))) {
    dispatcher_.Abandon(Unavailable("the router is shutting down"));
    inference_.live_calls().WaitForNone(kGoodbye);
  } else {
    // gRPC closes a connection as soon as its last call has ended, even if the client is just
    // writing to it, and a client that cannot write does not read the end of its answer.
    absl::SleepFor(kLinger);
  }
  Stop();
}

void RouterServer::ForgetHealth() {
  {
    absl::MutexLock lock(&health_mutex_);
    health_ = nullptr;
  }
  running_.server->GetHealthCheckService()->SetServingStatus(false);
}

void RouterServer::Stop() {
  ForgetHealth();
  acceptor_->Close();
  ShutDown(*running_.server, std::chrono::milliseconds(0));
  acceptor_.reset();
  // gRPC tells the core's thread of the end of calls that it has forgotten itself.
  inference_.live_calls().WaitForNone(absl::InfiniteDuration());
  running_.server.reset();
}

}  // namespace facet
