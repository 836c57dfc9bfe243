#ifndef FACET_ROUTER_SERVICE_INFO_SERVICES_H_
#define FACET_ROUTER_SERVICE_INFO_SERVICES_H_

#include "facet/v1/inference.grpc.pb.h"
#include "router/service/dispatcher.h"
#include "router/service/served_model.h"

namespace facet {

// Which models clients may ask for. References must outlive the server.
class ModelsService : public v1::Models::CallbackService {
 public:
  ModelsService(const ServedModel& model, Dispatcher& dispatcher)
      : model_(model), dispatcher_(dispatcher) {}

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListModelsRequest* request,
                                 v1::ListModelsResponse* response) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context,
                                const v1::GetModelRequest* request,
                                v1::ModelInfo* response) override;

 private:
  // As a group reports it, or while there is none as the file has it.
  v1::ModelInfo Describe(const v1::GetStatusResponse& status) const;

  const ServedModel& model_;
  Dispatcher& dispatcher_;
};

// What operators see of the groups. The reference must outlive the server.
class StatusService : public v1::Status::CallbackService {
 public:
  explicit StatusService(Dispatcher& dispatcher) : dispatcher_(dispatcher) {}

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context,
                                      const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override;
  grpc::ServerUnaryReactor* Profile(grpc::CallbackServerContext* context,
                                    const v1::ProfileRequest* request,
                                    v1::ProfileResponse* response) override;

 private:
  Dispatcher& dispatcher_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_INFO_SERVICES_H_
