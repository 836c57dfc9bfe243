#include "router/service/info_services.h"

#include <functional>
#include <memory>
#include <utility>

#include "base/status.h"
#include "router/service/request_parser.h"
#include "router/service/unary_call.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

constexpr int64_t kProfileMaxUs = int64_t{3600} * 1'000'000;

// Answers the call with what `fill` makes of the state of things.
template <typename Call>
void AnswerFrom(Dispatcher& dispatcher, const std::shared_ptr<Call>& call,
                std::function<void(const v1::GetStatusResponse& status)> fill) {
  const bool posted = dispatcher.Query([call, fill = std::move(fill)](const auto& status) {
    fill(status);
    call->Finish(grpc::Status::OK);
  });
  if (!posted) call->Finish(ToGrpc(ResourceExhausted("the router is overloaded")));
}

}  // namespace

std::vector<AcceptedMethod> ModelsService::Methods(LiveCalls& live) {
  using List = UnaryCall<v1::ListModelsRequest, v1::ListModelsResponse>;
  using Get = UnaryCall<v1::GetModelRequest, v1::ModelInfo>;
  return {AcceptUnary<v1::ListModelsRequest, v1::ListModelsResponse>(
              std::bind_front(&v1::Models::AsyncService::RequestList, this),
              [this](const std::shared_ptr<List>& call) {
                AnswerFrom(dispatcher_, call, [this, call](const auto& status) {
                  *call->response().add_models() = Describe(status);
                });
              },
              live),
          AcceptUnary<v1::GetModelRequest, v1::ModelInfo>(
              std::bind_front(&v1::Models::AsyncService::RequestGet, this),
              [this](const std::shared_ptr<Get>& call) {
                const absl::Status known = CheckModelName(call->request().name(), model_);
                if (!known.ok()) return call->Finish(ToGrpc(known));
                AnswerFrom(dispatcher_, call, [this, call](const auto& status) {
                  call->response() = Describe(status);
                });
              },
              live)};
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

std::vector<AcceptedMethod> StatusService::Methods(LiveCalls& live) {
  using Get = UnaryCall<v1::GetStatusRequest, v1::GetStatusResponse>;
  using ProfileCall = UnaryCall<v1::ProfileRequest, v1::ProfileResponse>;
  return {AcceptUnary<v1::GetStatusRequest, v1::GetStatusResponse>(
              std::bind_front(&v1::Status::AsyncService::RequestGetStatus, this),
              [this](const std::shared_ptr<Get>& call) {
                AnswerFrom(dispatcher_, call,
                           [call](const auto& status) { call->response() = status; });
              },
              live),
          AcceptUnary<v1::ProfileRequest, v1::ProfileResponse>(
              std::bind_front(&v1::Status::AsyncService::RequestProfile, this),
              [this](const std::shared_ptr<ProfileCall>& call) {
                call->Finish(Profile(call->request().duration_us()));
              },
              live)};
}

grpc::Status StatusService::Profile(int64_t duration_us) {
  if (duration_us < 0 || duration_us > kProfileMaxUs) {
    return ToGrpc(
        InvalidArgument("duration_us: {} is outside [0, {}]", duration_us, kProfileMaxUs));
  }
  if (!dispatcher_.Profile(duration_us)) {
    return ToGrpc(ResourceExhausted("the router is overloaded"));
  }
  return grpc::Status::OK;
}

}  // namespace facet
