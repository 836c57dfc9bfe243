#include "router/service/request_parser.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <utility>

#include "base/status.h"

namespace facet {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// An interval as messages write it: "(0, 1]".
struct Range {
  float low;
  bool low_open;
  float high;
};

absl::Status CheckRange(std::string_view field, float value, Range range) {
  const bool above = range.low_open ? value > range.low : value >= range.low;
  if (above && value <= range.high) return absl::OkStatus();  // false for NaN
  return InvalidArgument("{}: {} is outside {}{}, {}]", field, value, range.low_open ? '(' : '[',
                         range.low, range.high);
}

absl::Status CheckRange(std::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return InvalidArgument("{}: {} is outside [{}, {}]", field, value, low, high);
}

absl::Status CheckCount(std::string_view field, int64_t count, int64_t max) {
  if (count <= max) return absl::OkStatus();
  return InvalidArgument("{}: {} entries, at most {} are allowed", field, count, max);
}

absl::Status CheckLogitBias(const v1::SamplingParams& sampling, const ServedModel& model,
                            const RequestLimits& limits) {
  FACET_RETURN_IF_ERROR(
      CheckCount("sampling.logit_bias", sampling.logit_bias_size(), limits.logit_bias_max));
  for (const auto& [id, bias] : sampling.logit_bias()) {
    if (id < 0 || id >= model.tokenizer->size()) {
      return InvalidArgument("sampling.logit_bias: token id {} is outside the vocabulary of {}", id,
                             model.tokenizer->size());
    }
    if (std::isnan(bias) || bias == kInfinity) {
      return InvalidArgument("sampling.logit_bias[{}]: {} is neither a finite number nor -inf", id,
                             bias);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const v1::SamplingParams& sampling, const ServedModel& model,
                           const RequestLimits& limits) {
  const auto check = [](std::string_view field, bool set, float value, Range range) {
    return set ? CheckRange(field, value, range) : absl::OkStatus();
  };
  const v1::SamplingParams& s = sampling;
  FACET_RETURN_IF_ERROR(
      check("sampling.temperature", s.has_temperature(), s.temperature(), {0, false, 100}));
  FACET_RETURN_IF_ERROR(
      CheckRange("sampling.top_k", s.top_k(), 0, std::numeric_limits<int32_t>::max()));
  FACET_RETURN_IF_ERROR(check("sampling.top_p", s.has_top_p(), s.top_p(), {0, true, 1}));
  FACET_RETURN_IF_ERROR(check("sampling.min_p", s.has_min_p(), s.min_p(), {0, false, 1}));
  FACET_RETURN_IF_ERROR(check("sampling.repetition_penalty", s.has_repetition_penalty(),
                              s.repetition_penalty(), {0, true, 100}));
  FACET_RETURN_IF_ERROR(check("sampling.presence_penalty", s.has_presence_penalty(),
                              s.presence_penalty(), {-100, false, 100}));
  FACET_RETURN_IF_ERROR(check("sampling.frequency_penalty", s.has_frequency_penalty(),
                              s.frequency_penalty(), {-100, false, 100}));
  return CheckLogitBias(s, model, limits);
}

absl::Status CheckScalars(const v1::GenerateRequest& request, const RequestLimits& limits) {
  if (std::ssize(request.request_id()) > limits.request_id_bytes_max) {
    return InvalidArgument("request_id: {} bytes, at most {} are allowed",
                           request.request_id().size(), limits.request_id_bytes_max);
  }
  if (request.prompts().empty()) return InvalidArgument("prompts: is empty");
  FACET_RETURN_IF_ERROR(CheckCount("prompts", request.prompts_size(), limits.prompts_max));
  if (request.has_n()) FACET_RETURN_IF_ERROR(CheckRange("n", request.n(), 1, limits.n_max));
  const int64_t choices = int64_t{request.prompts_size()} * (request.has_n() ? request.n() : 1);
  if (choices > limits.choices_max) {
    return InvalidArgument("n: {} prompts x {} choices are more than {}", request.prompts_size(),
                           request.n(), limits.choices_max);
  }
  if (request.has_max_tokens()) {
    FACET_RETURN_IF_ERROR(CheckRange("max_tokens", request.max_tokens(), request.echo() ? 0 : 1,
                                     std::numeric_limits<int32_t>::max()));
  }
  if (request.has_logprobs()) {
    FACET_RETURN_IF_ERROR(CheckRange("logprobs", request.logprobs(), 0, limits.logprobs_max));
  }
  return CheckRange("priority", request.priority(), -100, 100);
}

int64_t PromptBytes(const v1::Prompt& prompt) {
  int64_t bytes = std::ssize(prompt.text()) + int64_t{4} * prompt.tokens().ids_size();
  for (const v1::ChatMessage& message : prompt.chat().messages()) {
    bytes += std::ssize(message.content());
  }
  return bytes;
}

absl::StatusOr<std::vector<TokenId>> TokenizeChat(const v1::Chat& chat, std::string_view name,
                                                  const ServedModel& model,
                                                  const RequestLimits& limits) {
  FACET_RETURN_IF_ERROR(CheckCount(fmt::format("{}.chat.messages", name), chat.messages_size(),
                                   limits.chat_messages_max));
  if (!model.chat_format.ok()) {
    return Annotate(model.chat_format.status(), fmt::format("{}.chat", name));
  }
  std::vector<ChatMessage> messages;
  for (const v1::ChatMessage& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  auto ids = model.chat_format->Render(messages);
  if (!ids.ok()) return Annotate(ids.status(), fmt::format("{}.chat", name));
  return ids;
}

absl::StatusOr<RouterPrompt> ParsePrompt(const v1::GenerateRequest& request, int index,
                                         const ServedModel& model, int context_tokens,
                                         const RequestLimits& limits) {
  RouterPrompt prompt;
  FACET_ASSIGN_OR_RETURN(
      prompt.tokens,
      TokenizePrompt(request.prompts(index), fmt::format("prompts[{}]", index), model, limits));
  const auto tokens = static_cast<int64_t>(prompt.tokens.size());
  if (tokens >= context_tokens) {
    return InvalidArgument(
        "prompts[{}]: {} tokens leave no room for output in the context of {} tokens", index,
        tokens, context_tokens);
  }
  const int room = context_tokens - static_cast<int>(tokens);
  prompt.max_tokens = request.has_max_tokens() ? std::min(request.max_tokens(), room) : room;
  return prompt;
}

uint64_t DrawSeed() {
  thread_local std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

std::vector<TokenId> StopTokens(const v1::GenerateRequest& request, const ServedModel& model) {
  std::vector<TokenId> ids(request.stop_token_ids().begin(), request.stop_token_ids().end());
  if (!request.ignore_eos()) {
    ids.insert(ids.end(), model.end_tokens.begin(), model.end_tokens.end());
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::shared_ptr<SubmitParams> MakeSubmitParams(const v1::GenerateRequest& request,
                                               const std::vector<TokenId>& stop_tokens) {
  auto params = std::make_shared<SubmitParams>();
  *params->submit.mutable_sampling() = request.sampling();
  params->submit.mutable_stop_token_ids()->Add(stop_tokens.begin(), stop_tokens.end());
  if (request.has_logprobs()) params->submit.set_logprobs(request.logprobs());
  params->submit.set_logits_digest(request.logits_digest());
  return params;
}

// Takes over where the request's earlier stream stopped.
absl::Status AddResume(const v1::GenerateRequest& request, const ServedModel& model,
                       const RequestLimits& limits, ParsedRequest& parsed) {
  std::vector<int> max_tokens;
  for (const RouterPrompt& prompt : parsed.core.prompts) max_tokens.push_back(prompt.max_tokens);
  FACET_ASSIGN_OR_RETURN(parsed.resumed, ParseResume(request, {.model = model,
                                                               .max_tokens = max_tokens,
                                                               .n = parsed.core.n,
                                                               .stops = parsed.stops,
                                                               .stop_tokens = parsed.stop_tokens,
                                                               .fingerprint_bytes_max =
                                                                   limits.fingerprint_bytes_max}));
  parsed.core.takes_over = true;
  for (const ResumedChoice& choice : parsed.resumed) {
    parsed.core.resume.push_back({.prompt_index = choice.prompt_index,
                                  .choice_index = choice.choice_index,
                                  .tokens = choice.tokens,
                                  .fingerprint = choice.fingerprint,
                                  // Its end is for the service to tell.
                                  .finished = choice.finished || choice.ended});
  }
  const auto& echoed = request.resume().echoed_prompts();
  parsed.echoed_prompts.assign(echoed.begin(), echoed.end());
  const std::set<int> distinct(echoed.begin(), echoed.end());
  if (std::ssize(distinct) == request.prompts_size()) parsed.core.prompt_logprobs = false;
  return absl::OkStatus();
}

// What waits with a request beside its prompts' tokens, roughly.
int64_t ExtraBytes(const v1::GenerateRequest& request, const ParsedRequest& parsed,
                   const SubmitParams& params) {
  int64_t bytes = static_cast<int64_t>(params.submit.ByteSizeLong());
  for (const RouterPrompt& prompt : parsed.core.prompts) {
    // Once more for the stream's first message, and again for an echo.
    bytes +=
        std::ssize(prompt.tokens) * static_cast<int64_t>(sizeof(TokenId)) * (parsed.echo ? 2 : 1);
  }
  for (const std::string& stop : request.stop()) {
    // A matcher per choice: the string and its automaton.
    bytes += std::ssize(stop) * 9 * std::ssize(parsed.core.prompts) * parsed.core.n;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::vector<TokenId>> TokenizePrompt(const v1::Prompt& prompt, std::string_view name,
                                                    const ServedModel& model,
                                                    const RequestLimits& limits) {
  switch (prompt.kind_case()) {
    case v1::Prompt::kText:
      if (prompt.text().empty()) return InvalidArgument("{}.text: is empty", name);
      return model.tokenizer->Encode(prompt.text());
    case v1::Prompt::kChat:
      return TokenizeChat(prompt.chat(), name, model, limits);
    case v1::Prompt::kTokens: {
      const auto& ids = prompt.tokens().ids();
      const std::string field = fmt::format("{}.tokens.ids", name);
      if (ids.empty()) return InvalidArgument("{}: is empty", field);
      FACET_RETURN_IF_ERROR(CheckTokenIds(ids, field, model));
      return std::vector<TokenId>(ids.begin(), ids.end());
    }
    case v1::Prompt::KIND_NOT_SET:
      break;
  }
  return InvalidArgument("{}: has no text, chat or tokens", name);
}

absl::Status CheckPromptBytes(std::span<const v1::Prompt* const> prompts, std::string_view name,
                              const RequestLimits& limits) {
  int64_t bytes = 0;
  for (const v1::Prompt* prompt : prompts) bytes += PromptBytes(*prompt);
  if (bytes <= limits.prompt_bytes_max) return absl::OkStatus();
  return InvalidArgument("{}: {} bytes, at most {} are allowed", name, bytes,
                         limits.prompt_bytes_max);
}

absl::Status CheckModelName(std::string_view name, const ServedModel& model) {
  if (name.empty() || name == model.name) return absl::OkStatus();
  return NotFound("model: `{}` is not served here; `{}` is", name, model.name);
}

absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids,
                           std::string_view name, const ServedModel& model) {
  for (int i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < model.tokenizer->size()) continue;
    return InvalidArgument("{}[{}]: {} is outside the vocabulary of {}", name, i, ids[i],
                           model.tokenizer->size());
  }
  return absl::OkStatus();
}

absl::Status CheckTenant(std::string_view tenant, const RequestLimits& limits) {
  if (tenant.empty()) return InvalidArgument("facet-tenant: is empty");
  if (std::ssize(tenant) > limits.tenant_bytes_max) {
    return InvalidArgument("facet-tenant: {} bytes, at most {} are allowed", tenant.size(),
                           limits.tenant_bytes_max);
  }
  const bool printable =
      std::all_of(tenant.begin(), tenant.end(), [](char c) { return c > ' ' && c < 0x7f; });
  if (!printable) return InvalidArgument("facet-tenant: holds other than printable ASCII");
  return absl::OkStatus();
}

absl::Status CheckNoUnknownFields(const google::protobuf::Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  if (const auto& unknown = reflection.GetUnknownFields(message); !unknown.empty()) {
    return Unimplemented("field {} of {} is not known here", unknown.field(0).number(),
                         message.GetDescriptor()->name());
  }
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const google::protobuf::FieldDescriptor* field : fields) {
    if (field->message_type() == nullptr || field->is_map()) continue;
    if (!field->is_repeated()) {
      FACET_RETURN_IF_ERROR(CheckNoUnknownFields(reflection.GetMessage(message, field)));
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      FACET_RETURN_IF_ERROR(CheckNoUnknownFields(reflection.GetRepeatedMessage(message, field, i)));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateRequest& request,
                                           const ServedModel& model, int context_tokens,
                                           const RequestLimits& limits) {
  FACET_RETURN_IF_ERROR(CheckNoUnknownFields(request));
  FACET_RETURN_IF_ERROR(CheckModelName(request.model(), model));
  FACET_RETURN_IF_ERROR(CheckScalars(request, limits));
  FACET_RETURN_IF_ERROR(CheckSampling(request.sampling(), model, limits));
  FACET_RETURN_IF_ERROR(
      CheckCount("stop_token_ids", request.stop_token_ids_size(), limits.stop_token_ids_max));
  FACET_RETURN_IF_ERROR(CheckTokenIds(request.stop_token_ids(), "stop_token_ids", model));
  FACET_ASSIGN_OR_RETURN(
      StopMatcher stops,
      StopMatcher::Create({request.stop().begin(), request.stop().end()}, limits.stop));
  FACET_RETURN_IF_ERROR(CheckPromptBytes(
      {request.prompts().data(), static_cast<size_t>(request.prompts_size())}, "prompts", limits));

  ParsedRequest parsed{.stops = std::move(stops), .stop_tokens = StopTokens(request, model)};
  for (int i = 0; i < request.prompts_size(); ++i) {
    FACET_ASSIGN_OR_RETURN(RouterPrompt prompt,
                           ParsePrompt(request, i, model, context_tokens, limits));
    parsed.core.prompts.push_back(std::move(prompt));
  }
  parsed.core.client_id = request.request_id();
  parsed.core.priority = request.priority();
  parsed.core.n = request.has_n() ? request.n() : 1;
  parsed.core.seed = request.has_seed() ? request.seed() : DrawSeed();
  parsed.core.prompt_logprobs = request.echo() && request.has_logprobs();
  parsed.echo = request.echo();
  parsed.logprobs = request.has_logprobs();
  const auto params = MakeSubmitParams(request, parsed.stop_tokens);
  parsed.core.extra_bytes = ExtraBytes(request, parsed, *params);
  parsed.core.params = params;
  if (request.has_resume()) FACET_RETURN_IF_ERROR(AddResume(request, model, limits, parsed));
  return parsed;
}

}  // namespace facet
