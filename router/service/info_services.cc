#include "router/service/info_services.h"

#include "base/status.h"
#include "router/service/request_parser.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

constexpr int64_t kProfileMaxUs = int64_t{3600} * 1'000'000;

// Answers `context`'s call with what `fill` makes of the state of things.
grpc::ServerUnaryReactor* AnswerFrom(
    Dispatcher& dispatcher, grpc::CallbackServerContext& context,
    std::function<void(const v1::GetStatusResponse& status)> fill) {
  grpc::ServerUnaryReactor* reactor = context.DefaultReactor();
  const bool posted = dispatcher.Query([reactor, fill = std::move(fill)](const auto& status) {
    fill(status);
    reactor->Finish(grpc::Status::OK);
  });
  if (!posted) reactor->Finish(ToGrpc(ResourceExhausted("the router is overloaded")));
  return reactor;
}

}  // namespace

grpc::ServerUnaryReactor* ModelsService::List(grpc::CallbackServerContext* context,
                                              const v1::ListModelsRequest*,
                                              v1::ListModelsResponse* response) {
  return AnswerFrom(dispatcher_, *context, [this, response](const v1::GetStatusResponse& status) {
    *response->add_models() = Describe(status);
  });
}

grpc::ServerUnaryReactor* ModelsService::Get(grpc::CallbackServerContext* context,
                                             const v1::GetModelRequest* request,
                                             v1::ModelInfo* response) {
  if (const absl::Status known = CheckModelName(request->name(), model_); !known.ok()) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(known));
    return reactor;
  }
  return AnswerFrom(dispatcher_, *context, [this, response](const v1::GetStatusResponse& status) {
    *response = Describe(status);
  });
}

v1::ModelInfo ModelsService::Describe(const v1::GetStatusResponse& status) const {
  v1::ModelInfo info;
  info.set_architecture(model_.architecture);
  info.set_description(model_.description);
  info.set_parameters(model_.parameters);
  info.set_context_tokens(model_.context_tokens);
  info.set_vocabulary_size(model_.tokenizer->size());
  info.set_digest(model_.digest);
  for (const v1::GroupStatus& group : status.groups()) {
    if (!group.ready()) continue;
    info = group.model();
    break;
  }
  info.set_name(model_.name);
  return info;
}

grpc::ServerUnaryReactor* StatusService::GetStatus(grpc::CallbackServerContext* context,
                                                   const v1::GetStatusRequest*,
                                                   v1::GetStatusResponse* response) {
  return AnswerFrom(dispatcher_, *context,
                    [response](const v1::GetStatusResponse& status) { *response = status; });
}

grpc::ServerUnaryReactor* StatusService::Profile(grpc::CallbackServerContext* context,
                                                 const v1::ProfileRequest* request,
                                                 v1::ProfileResponse*) {
  const int64_t duration_us = request->duration_us();
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (duration_us < 0 || duration_us > kProfileMaxUs) {
    reactor->Finish(
        ToGrpc(InvalidArgument("duration_us: {} is outside [0, {}]", duration_us, kProfileMaxUs)));
  } else if (!dispatcher_.Profile(duration_us)) {
    reactor->Finish(ToGrpc(ResourceExhausted("the router is overloaded")));
  } else {
    reactor->Finish(grpc::Status::OK);
  }
  return reactor;
}

}  // namespace facet
