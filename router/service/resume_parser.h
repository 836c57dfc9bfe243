#ifndef FACET_ROUTER_SERVICE_RESUME_PARSER_H_
#define FACET_ROUTER_SERVICE_RESUME_PARSER_H_

// Where a stream that broke off goes on. Everything a router knew of it follows from the request
// and the token ids that the client received: they are pushed again through detokenizer and stop
// matcher, which leaves both as they were.

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ids.h"
#include "facet/v1/inference.pb.h"
#include "router/service/choice_text.h"
#include "router/service/served_model.h"
#include "router/tokenizer/stop_matcher.h"

namespace facet {

// One choice as its client knows it.
struct ResumedChoice {
  int prompt_index = 0;
  int choice_index = 0;
  std::vector<TokenId> tokens;  // empty where `finished`
  std::string fingerprint;      // of the group that chose them
  bool finished = false;        // the client has all of it
  bool ended = false;           // the last token was its end, which the client has not heard of
  ChoiceText text;              // after the tokens
  std::string unsent;           // what they say beyond the text that the client has received
};

// What the resumed request is, beside the message itself.
struct ResumeContext {
  const ServedModel& model;
  std::span<const int> max_tokens;  // by prompt
  int n = 1;
  const StopMatcher& stops;              // fresh
  std::span<const TokenId> stop_tokens;  // sorted; the buffer outlives the choices
  int fingerprint_bytes_max = 0;
};

// Checks `request.resume` and rebuilds its choices. InvalidArgument names the field: what lies
// outside the request, contradicts it, or contradicts itself.
absl::StatusOr<std::vector<ResumedChoice>> ParseResume(const v1::GenerateRequest& request,
                                                       const ResumeContext& context);

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_RESUME_PARSER_H_
