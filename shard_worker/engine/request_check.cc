#include "shard_worker/engine/request_check.h"

#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace facet {
namespace {

absl::Status CheckRange(std::string_view field, float value, float low, float high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return InvalidArgument("{}: {} is not in [{}, {}]", field, value, low, high);
}

absl::Status CheckIds(std::string_view field, const std::vector<TokenId>& ids, int vocabulary) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocabulary) {
      return InvalidArgument("{}[{}]: {} is not in the vocabulary of {} tokens", field, i, ids[i],
                             vocabulary);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogitBias(const SamplingParams& sampling, int vocabulary) {
  TokenId last = -1;
  for (const auto& [id, bias] : sampling.logit_bias) {
    if (id <= last || id >= vocabulary) {
      return InvalidArgument("logit_bias: id {} is out of order or not in the vocabulary of {}", id,
                             vocabulary);
    }
    if (std::isnan(bias) || bias == std::numeric_limits<float>::infinity()) {
      return InvalidArgument("logit_bias[{}]: {} is neither finite nor -infinity", id, bias);
    }
    last = id;
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const SamplingParams& sampling, int vocabulary) {
  constexpr float kTiny = std::numeric_limits<float>::denorm_min();  // an open bound at 0
  FACET_RETURN_IF_ERROR(CheckRange("temperature", sampling.temperature, 0, 100));
  FACET_RETURN_IF_ERROR(CheckRange("top_p", sampling.top_p, kTiny, 1));
  FACET_RETURN_IF_ERROR(CheckRange("min_p", sampling.min_p, 0, 1));
  FACET_RETURN_IF_ERROR(CheckRange("repetition_penalty", sampling.repetition_penalty, kTiny, 100));
  FACET_RETURN_IF_ERROR(CheckRange("presence_penalty", sampling.presence_penalty, -100, 100));
  FACET_RETURN_IF_ERROR(CheckRange("frequency_penalty", sampling.frequency_penalty, -100, 100));
  if (sampling.top_k < 0) return InvalidArgument("top_k: {} is negative", sampling.top_k);
  return CheckLogitBias(sampling, vocabulary);
}

absl::Status CheckLengths(const EngineRequest& request, int context_tokens) {
  const int64_t size = static_cast<int64_t>(request.tokens.size());
  if (size == 0) return InvalidArgument("tokens: the prompt is empty");
  if (request.prompt_length < 1 || request.prompt_length > size) {
    return InvalidArgument("prompt_length: {} is not in [1, {}]", request.prompt_length, size);
  }
  if (request.max_tokens < 0) {
    return InvalidArgument("max_tokens: {} is negative", request.max_tokens);
  }
  if (size - request.prompt_length > request.max_tokens) {
    return InvalidArgument("tokens: {} tokens of output are more than max_tokens, {}",
                           size - request.prompt_length, request.max_tokens);
  }
  const int64_t prompt_max = context_tokens - (request.max_tokens > 0 ? 1 : 0);
  if (request.prompt_length > prompt_max || size > context_tokens) {
    return InvalidArgument(
        "tokens: a prompt of {} tokens is too long; at most {} fit, for prompt and output",
        request.prompt_length, context_tokens);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckRequest(const EngineRequest& request, const EngineOptions& options,
                          int context_tokens) {
  FACET_RETURN_IF_ERROR(CheckLengths(request, context_tokens));
  FACET_RETURN_IF_ERROR(CheckIds("tokens", request.tokens, options.vocabulary_size));
  if (static_cast<int>(request.stop_token_ids.size()) > options.stop_token_ids_max) {
    return InvalidArgument("stop_token_ids: {} ids, at most {} are allowed",
                           request.stop_token_ids.size(), options.stop_token_ids_max);
  }
  FACET_RETURN_IF_ERROR(
      CheckIds("stop_token_ids", request.stop_token_ids, options.vocabulary_size));
  if (request.logprobs < -1 || request.logprobs > options.logprobs_max) {
    return InvalidArgument("logprobs: {} is not in [0, {}]", request.logprobs,
                           options.logprobs_max);
  }
  return CheckSampling(request.sampling, options.vocabulary_size);
}

}  // namespace facet
