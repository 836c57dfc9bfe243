#include "router/service/router_server.h"

#include <grpcpp/ext/health_check_service_server_builder_option.h>

#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"

namespace facet {
namespace {

constexpr char kInference[] = "facet.v1.Inference";

// For the last words of streams that another router goes on with.
constexpr absl::Duration kGoodbye = absl::Seconds(1);
constexpr absl::Duration kLinger = absl::Milliseconds(200);

}  // namespace

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Start(const RouterOptions& options,
                                                                  prometheus::Registry& registry) {
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<ServedModel> model,
                         ServedModel::Load(options.model_path, options.model_name));
  grpc::ServerBuilder builder;
  std::unique_ptr<RouterServer> router(
      new RouterServer(options, std::move(model), registry, builder.AddCompletionQueue()));
  FACET_RETURN_IF_ERROR(router->Listen(options, builder));
  return router;
}

RouterServer::RouterServer(const RouterOptions& options, std::unique_ptr<ServedModel> model,
                           prometheus::Registry& registry,
                           std::unique_ptr<grpc::ServerCompletionQueue> queue)
    : model_(std::move(model)),
      metrics_(registry),
      health_(options.health, {kInference}),
      queue_(*queue),
      dispatcher_(
          options.dispatcher, *model_, metrics_, std::move(queue),
          [this](bool ready) { health_.Set(kInference, ready); },
          [this](TimeUs before) {
            return live_calls_.GiveUpStalled(before) + health_.live_calls().GiveUpStalled(before);
          }),
      inference_(options.inference, *model_, metrics_, dispatcher_),
      models_(*model_, dispatcher_),
      status_(dispatcher_) {}

RouterServer::~RouterServer() {
  if (running_.server != nullptr) Stop();
}

absl::Status RouterServer::Listen(const RouterOptions& options, grpc::ServerBuilder& builder) {
  builder.RegisterService(&inference_);
  builder.RegisterService(&models_);
  builder.RegisterService(&status_);
  builder.RegisterService(&health_);
  builder.SetOption(std::make_unique<grpc::HealthCheckServiceServerBuilderOption>(nullptr));
  acceptor_ = std::make_unique<CallAcceptor>(options.acceptor, Methods(), queue_);
  FACET_ASSIGN_OR_RETURN(running_, StartGrpcServer(builder, options.server));
  acceptor_->Start();
  // The process as a whole serves also while its groups are away: requests wait for them.
  for (const char* service : {"", "facet.v1.Models", "facet.v1.Status"}) health_.Set(service, true);
  return absl::OkStatus();
}

std::vector<AcceptedMethod> RouterServer::Methods() {
  std::vector<AcceptedMethod> all = health_.Methods();
  for (const auto& some : {inference_.Methods(live_calls_), models_.Methods(live_calls_),
                           status_.Methods(live_calls_)}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

void RouterServer::Drain(std::chrono::milliseconds grace) {
  if (running_.server == nullptr) return;
  health_.Close();
  live_calls_.Close();
  if (!live_calls_.WaitForNone(absl::FromChrono(grace))) {
    dispatcher_.Abandon(Unavailable("the router is shutting down"));
    live_calls_.WaitForNone(kGoodbye);
  } else {
    // gRPC closes a connection as soon as its last call has ended, even if the client is just
    // writing to it, and a client that cannot write does not read the end of its answer.
    absl::SleepFor(kLinger);
  }
  Stop();
}

void RouterServer::Stop() {
  health_.Close();
  acceptor_->Close();
  ShutDown(*running_.server, std::chrono::milliseconds(0));
  acceptor_.reset();
  // gRPC tells the core's thread of the end of calls that it has forgotten itself.
  live_calls_.WaitForNone(absl::InfiniteDuration());
  health_.live_calls().WaitForNone(absl::InfiniteDuration());
  running_.server.reset();
}

}  // namespace facet
