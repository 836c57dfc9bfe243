#include "router/service/completion.h"

namespace facet {

void Completion::Expect(int prompts, int n) {
  n_ = n;
  for (int i = 0; i < prompts * n; ++i) {
    v1::Choice& choice = *response().add_choices();
    choice.set_prompt_index(i / n);
    choice.set_choice_index(i % n);
  }
}

ResponseSink::Room Completion::Write(v1::GenerateResponse part) {
  bytes_ += static_cast<int64_t>(part.ByteSizeLong());
  if (bytes_ > bytes_max_) return Room::kTooBig;
  v1::CompleteResponse& whole = response();
  if (!part.request_id().empty()) whole.set_request_id(part.request_id());
  for (v1::PromptEcho& echo : *part.mutable_echo()) *whole.add_echo() = std::move(echo);
  for (v1::Delta& delta : *part.mutable_deltas()) {
    v1::Choice& choice = *whole.mutable_choices(delta.prompt_index() * n_ + delta.choice_index());
    for (v1::TokenOutput& token : *delta.mutable_tokens()) *choice.add_tokens() = std::move(token);
    choice.mutable_text()->append(delta.text());
    if (delta.has_finish()) *choice.mutable_finish() = std::move(*delta.mutable_finish());
  }
  return Room::kMore;
}

void Completion::Finish(const absl::Status& status) {
  Call::Finish(FinalStatus(mutable_context(), status));
}

}  // namespace facet
