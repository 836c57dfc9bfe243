#include "router/service/completion.h"

#include <utility>

namespace facet {

std::shared_ptr<Completion> Completion::Start(grpc::CallbackServerContext* context,
                                              v1::CompleteResponse* response, int64_t bytes_max,
                                              std::function<void()> on_done) {
  std::shared_ptr<Completion> completion(
      new Completion(context, response, bytes_max, std::move(on_done)));
  completion->self_ = completion;
  return completion;
}

void Completion::Expect(int prompts, int n) {
  n_ = n;
  for (int i = 0; i < prompts * n; ++i) {
    v1::Choice& choice = *response_->add_choices();
    choice.set_prompt_index(i / n);
    choice.set_choice_index(i % n);
  }
}

ResponseSink::Room Completion::Write(v1::GenerateResponse part) {
  bytes_ += static_cast<int64_t>(part.ByteSizeLong());
  if (bytes_ > bytes_max_) return Room::kTooBig;
  if (!part.request_id().empty()) response_->set_request_id(part.request_id());
  for (v1::PromptEcho& echo : *part.mutable_echo()) *response_->add_echo() = std::move(echo);
  for (v1::Delta& delta : *part.mutable_deltas()) {
    v1::Choice& choice =
        *response_->mutable_choices(delta.prompt_index() * n_ + delta.choice_index());
    for (v1::TokenOutput& token : *delta.mutable_tokens()) *choice.add_tokens() = std::move(token);
    choice.mutable_text()->append(delta.text());
    if (delta.has_finish()) *choice.mutable_finish() = std::move(*delta.mutable_finish());
  }
  return Room::kMore;
}

void Completion::Finish(const absl::Status& status) {
  grpc::ServerUnaryReactor::Finish(FinalStatus(*context_, status));
}

ResponseSink::State Completion::Sweep(TimeUs) { return done_ ? State::kOver : State::kLive; }

void Completion::OnDone() {
  const std::shared_ptr<Completion> self = std::move(self_);
  done_ = true;
  on_done_();
}

}  // namespace facet
