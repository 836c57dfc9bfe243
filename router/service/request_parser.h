#ifndef FACET_ROUTER_SERVICE_REQUEST_PARSER_H_
#define FACET_ROUTER_SERVICE_REQUEST_PARSER_H_

// What a client asks for, checked field by field and tokenized. Runs on gRPC's threads; everything
// after it may rely on what it checked.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "facet/v1/inference.pb.h"
#include "facet/v1/shard.pb.h"
#include "router/core/request.h"
#include "router/service/resume_parser.h"
#include "router/service/served_model.h"
#include "router/tokenizer/stop_matcher.h"

namespace facet {

struct RequestLimits {
  int prompts_max = 256;
  int n_max = 128;
  int choices_max = 1024;                       // prompts x n
  int64_t prompt_bytes_max = int64_t{4} << 20;  // of a request: text and chat; token ids count 4
  int chat_messages_max = 4096;
  int logprobs_max = 20;
  int stop_token_ids_max = 256;
  int logit_bias_max = 4096;
  int request_id_bytes_max = 128;
  int tenant_bytes_max = 64;
  int fingerprint_bytes_max = 256;  // of a resumed choice
  StopLimits stop;
};

// The part of a Submit that is the same for all sequences of a request.
class SubmitParams : public SequenceParams {
 public:
  v1::Submit submit;
};

struct ParsedRequest {
  RouterRequest core;  // without client_id where the client gave none; tenant, deadline: unset
  StopMatcher stops;
  std::vector<TokenId> stop_tokens;  // sorted
  bool echo = false;
  bool logprobs = false;
  std::vector<ResumedChoice> resumed;  // those of a stream that broke off
  std::vector<int> echoed_prompts;     // whose echo its client has
};

// InvalidArgument names the field and what it may be; NotFound an unknown model; Unimplemented an
// option that this router does not know; FailedPrecondition chat with a model that cannot.
// `context_tokens`: prompt + output, at most. A missing seed is drawn here.
absl::StatusOr<ParsedRequest> ParseRequest(const v1::GenerateRequest& request,
                                           const ServedModel& model, int context_tokens,
                                           const RequestLimits& limits);

// The ids of prompt `name`. InvalidArgument also for what is empty.
absl::StatusOr<std::vector<TokenId>> TokenizePrompt(const v1::Prompt& prompt, std::string_view name,
                                                    const ServedModel& model,
                                                    const RequestLimits& limits);

// InvalidArgument if the prompts together are longer than a request may be.
absl::Status CheckPromptBytes(std::span<const v1::Prompt* const> prompts, std::string_view name,
                              const RequestLimits& limits);
absl::Status CheckModelName(std::string_view name, const ServedModel& model);
// `name` is the field that holds the ids.
absl::Status CheckTokenIds(const google::protobuf::RepeatedField<int32_t>& ids,
                           std::string_view name, const ServedModel& model);
absl::Status CheckTenant(std::string_view tenant, const RequestLimits& limits);
// Unimplemented for a field that a newer client set and this router would have to ignore.
absl::Status CheckNoUnknownFields(const google::protobuf::Message& message);

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_REQUEST_PARSER_H_
