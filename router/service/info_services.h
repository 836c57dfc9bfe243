#ifndef FACET_ROUTER_SERVICE_INFO_SERVICES_H_
#define FACET_ROUTER_SERVICE_INFO_SERVICES_H_

#include <cstdint>
#include <vector>

#include "facet/v1/inference.grpc.pb.h"
#include "router/service/call_acceptor.h"
#include "router/service/dispatcher.h"
#include "router/service/live_calls.h"
#include "router/service/served_model.h"

namespace facet {

// Which models clients may ask for. References must outlive the server.
class ModelsService : public v1::Models::AsyncService {
 public:
  ModelsService(const ServedModel& model, Dispatcher& dispatcher)
      : model_(model), dispatcher_(dispatcher) {}

  // What the acceptor takes for it: calls of `live`.
  std::vector<AcceptedMethod> Methods(LiveCalls& live);

 private:
  // As a group reports it, or while there is none as the file has it.
  v1::ModelInfo Describe(const v1::GetStatusResponse& status) const;

  const ServedModel& model_;
  Dispatcher& dispatcher_;
};

// What operators see of the groups. The reference must outlive the server.
class StatusService : public v1::Status::AsyncService {
 public:
  explicit StatusService(Dispatcher& dispatcher) : dispatcher_(dispatcher) {}

  std::vector<AcceptedMethod> Methods(LiveCalls& live);

 private:
  grpc::Status Profile(int64_t duration_us);

  Dispatcher& dispatcher_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_INFO_SERVICES_H_
