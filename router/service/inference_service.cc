#include "router/service/inference_service.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <utility>

#include "base/status.h"
#include "router/service/generation.h"
#include "router/tokenizer/detokenizer.h"
#include "serving/grpc_status.h"

namespace facet {
namespace {

// A method whose calls are answered where they are taken.
template <typename In, typename Out>
AcceptedMethod AnsweredAtOnce(typename UnaryCall<In, Out>::Method method,
                              std::function<absl::Status(const In&, Out&)> answer,
                              LiveCalls& live) {
  const auto handler = [answer = std::move(answer)](std::shared_ptr<UnaryCall<In, Out>> call) {
    call->Finish(ToGrpc(answer(call->request(), call->response())));
  };
  return AcceptUnary<In, Out>(std::move(method), handler, live);
}

TimeUs DeadlineOf(const grpc::ServerContextBase& context, TimeUs now,
                  const InferenceOptions& options) {
  const auto deadline = context.deadline();
  const auto system_now = std::chrono::system_clock::now();
  // No deadline is an instant centuries away, too far to count in microseconds safely.
  if (deadline > system_now + std::chrono::hours(24 * 365)) return now + options.request_max_us;
  const TimeUs remaining =
      std::chrono::duration_cast<std::chrono::microseconds>(deadline - system_now).count();
  const TimeUs margin = std::clamp<TimeUs>(remaining / 2, 0, options.deadline_margin_us);
  return now + std::min(options.request_max_us, remaining - margin);
}

absl::StatusOr<std::string> TenantOf(const grpc::ServerContextBase& context,
                                     const RequestLimits& limits) {
  const auto [first, last] = context.client_metadata().equal_range("facet-tenant");
  if (first == last) return std::string("default");
  if (std::next(first) != last) return InvalidArgument("facet-tenant: is given more than once");
  const std::string tenant(first->second.data(), first->second.size());
  FACET_RETURN_IF_ERROR(CheckTenant(tenant, limits));
  return tenant;
}

std::string DrawRequestId() {
  thread_local std::random_device device;
  return fmt::format("{:08x}{:08x}{:08x}", device(), device(), device());
}

}  // namespace

std::vector<AcceptedMethod> InferenceService::Methods(LiveCalls& live) {
  const auto complete = [this](std::shared_ptr<Completion::Call> call) {
    Complete(std::static_pointer_cast<Completion>(std::move(call)));
  };
  const auto make_stream = [this, &live] {
    return std::make_shared<MessageStream>(
        options_.stream, *this, [this](const auto& stream) { Generate(stream); }, live);
  };
  const auto make_completion = [this, complete, &live] {
    return std::make_shared<Completion>(
        options_.complete_bytes_max,
        std::bind_front(&v1::Inference::AsyncService::RequestComplete, this), complete, live);
  };
  return {{.make = make_stream, .busy = true},
          {.make = make_completion, .busy = true},
          AnsweredAtOnce<v1::TokenizeRequest, v1::TokenizeResponse>(
              std::bind_front(&v1::Inference::AsyncService::RequestTokenize, this),
              std::bind_front(&InferenceService::TokenizeInto, this), live),
          AnsweredAtOnce<v1::DetokenizeRequest, v1::DetokenizeResponse>(
              std::bind_front(&v1::Inference::AsyncService::RequestDetokenize, this),
              std::bind_front(&InferenceService::DetokenizeInto, this), live)};
}

void InferenceService::Generate(const std::shared_ptr<MessageStream>& stream) {
  const TimeUs arrived_at = MonotonicNow();
  Begin(Parse(stream->context(), stream->request(), stream->open()), arrived_at, stream);
}

void InferenceService::Complete(const std::shared_ptr<Completion>& completion) {
  const TimeUs arrived_at = MonotonicNow();
  const v1::GenerateRequest& request = completion->request();
  absl::StatusOr<ParsedRequest> parsed = Parse(completion->context(), request, completion->open());
  if (parsed.ok() && request.has_resume()) {
    parsed = InvalidArgument("resume: a call without a stream has nothing to go on with");
  }
  if (parsed.ok()) {
    completion->Expect(static_cast<int>(parsed->core.prompts.size()), parsed->core.n);
  }
  Begin(std::move(parsed), arrived_at, completion);
}

absl::StatusOr<ParsedRequest> InferenceService::Parse(const grpc::ServerContextBase& context,
                                                      const v1::GenerateRequest& request,
                                                      bool open) const {
  if (!open) return Unavailable("the router is shutting down");
  FACET_ASSIGN_OR_RETURN(std::string tenant, TenantOf(context, options_.limits));
  const TimeUs deadline = DeadlineOf(context, MonotonicNow(), options_);
  FACET_ASSIGN_OR_RETURN(
      ParsedRequest parsed,
      ParseRequest(request, model_, dispatcher_.context_tokens(), options_.limits));
  parsed.core.tenant = std::move(tenant);
  parsed.core.deadline = deadline;
  if (parsed.core.client_id.empty()) parsed.core.client_id = DrawRequestId();
  return parsed;
}

void InferenceService::Begin(absl::StatusOr<ParsedRequest> parsed, TimeUs arrived_at,
                             std::shared_ptr<ResponseSink> sink) {
  if (!parsed.ok()) {
    metrics_.CountRequest(parsed.status().code());
    return sink->Finish(parsed.status());
  }
  sink->SetEvents([this, raw = sink.get()] { dispatcher_.Cancel(raw); },
                  [this, raw = sink.get()] { dispatcher_.Resume(raw); });
  dispatcher_.Submit(std::make_shared<Generation>(*std::move(parsed), arrived_at, model_, metrics_,
                                                  std::move(sink)));
}

absl::Status InferenceService::TokenizeInto(const v1::TokenizeRequest& request,
                                            v1::TokenizeResponse& response) const {
  FACET_RETURN_IF_ERROR(CheckNoUnknownFields(request));
  FACET_RETURN_IF_ERROR(CheckModelName(request.model(), model_));
  const v1::Prompt* const prompt = &request.prompt();
  FACET_RETURN_IF_ERROR(CheckPromptBytes({&prompt, 1}, "prompt", options_.limits));
  FACET_ASSIGN_OR_RETURN(const std::vector<TokenId> ids,
                         TokenizePrompt(request.prompt(), "prompt", model_, options_.limits));
  response.mutable_ids()->Add(ids.begin(), ids.end());
  for (const TokenId id : ids) {
    const std::string_view bytes = model_.tokenizer->TokenBytes(id);
    response.add_pieces(bytes.data(), bytes.size());
  }
  return absl::OkStatus();
}

absl::Status InferenceService::DetokenizeInto(const v1::DetokenizeRequest& request,
                                              v1::DetokenizeResponse& response) const {
  FACET_RETURN_IF_ERROR(CheckNoUnknownFields(request));
  FACET_RETURN_IF_ERROR(CheckModelName(request.model(), model_));
  FACET_RETURN_IF_ERROR(CheckTokenIds(request.ids(), "ids", model_));
  Detokenizer detokenizer(*model_.tokenizer);
  for (const TokenId id : request.ids()) response.mutable_text()->append(detokenizer.Push(id));
  response.mutable_text()->append(detokenizer.Flush());
  return absl::OkStatus();
}

}  // namespace facet
