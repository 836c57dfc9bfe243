#ifndef FACET_ROUTER_SERVICE_ROUTER_SERVER_H_
#define FACET_ROUTER_SERVICE_ROUTER_SERVER_H_

#include <prometheus/registry.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "router/service/call_acceptor.h"
#include "router/service/dispatcher.h"
#include "router/service/health_service.h"
#include "router/service/inference_service.h"
#include "router/service/info_services.h"
#include "router/service/live_calls.h"
#include "router/service/metrics.h"
#include "router/service/served_model.h"
#include "serving/grpc_server.h"

namespace facet {

struct RouterOptions {
  std::string model_path;
  std::string model_name;  // empty: the file's name without .gguf
  GrpcServerOptions server{.stream_window_bytes = 64 << 10};
  DispatcherOptions dispatcher;  // with the leaders
  InferenceOptions inference;
  CallAcceptorOptions acceptor;
  HealthOptions health;
};

// A whole router in one object: the services, and the thread and sessions behind them.
class RouterServer {
 public:
  // Returns once clients can connect; leaders are connected to in the background. `registry` must
  // outlive the router. Errors are sentences about the file or the address.
  static absl::StatusOr<std::unique_ptr<RouterServer>> Start(const RouterOptions& options,
                                                             prometheus::Registry& registry);
  // Cancels what still runs.
  ~RouterServer();

  // As clients on this host write it.
  const std::string& address() const { return running_.address; }
  const ServedModel& model() const { return *model_; }

  // How long ago the router last moved: what its liveness is judged by.
  std::chrono::milliseconds Age() const { return dispatcher_.Age(); }

  // Refuses new requests, gives running ones `grace`, ends the rest with Unavailable, so that their
  // clients resume them elsewhere, and closes the port. Once.
  void Drain(std::chrono::milliseconds grace);

 private:
  // `queue`: of the server that is to be built; the dispatcher's from here on.
  RouterServer(const RouterOptions& options, std::unique_ptr<ServedModel> model,
               prometheus::Registry& registry, std::unique_ptr<grpc::ServerCompletionQueue> queue);
  absl::Status Listen(const RouterOptions& options, grpc::ServerBuilder& builder);
  // Of all services.
  std::vector<AcceptedMethod> Methods();
  void Stop();

  const std::unique_ptr<ServedModel> model_;
  RouterMetrics metrics_;
  HealthService health_;
  LiveCalls live_calls_;  // of all services but health_
  grpc::ServerCompletionQueue& queue_;
  Dispatcher dispatcher_;
  InferenceService inference_;
  ModelsService models_;
  StatusService status_;
  std::unique_ptr<CallAcceptor> acceptor_;
  RunningServer running_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_ROUTER_SERVER_H_
