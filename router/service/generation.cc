#include "router/service/generation.h"

#include <algorithm>

#include "base/status.h"
#include "router/core/refusal.h"

namespace facet {
namespace {

// Deltas of a prompt's other choices that may wait for its echo.
constexpr int64_t kHeldBytesMax = 4 << 20;

double Seconds(TimeUs us) { return static_cast<double>(us) / 1e6; }

// A choice whose group was lost, or that was turned away for now, has no end: its client may resume
// it at another router, or later.
bool IsLost(const ChoiceEnd& end) {
  return end.reason == EndReason::kError &&
         (absl::IsUnavailable(end.status) || RetryAfter(end.status).has_value());
}

v1::FinishReason ReasonOf(EndReason reason) {
  switch (reason) {
    case EndReason::kStop:
      return v1::FINISH_REASON_STOP;
    case EndReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case EndReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case EndReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case EndReason::kError:
      break;
  }
  return v1::FINISH_REASON_ERROR;
}

}  // namespace

Generation::Generation(ParsedRequest parsed, TimeUs arrived_at, const ServedModel& model,
                       RouterMetrics& metrics, std::shared_ptr<ResponseSink> sink)
    : parsed_(std::move(parsed)),
      client_id_(parsed_.core.client_id),
      seed_(parsed_.core.seed),
      n_(parsed_.core.n),
      prompt_logprobs_(parsed_.core.prompt_logprobs),
      resumed_(parsed_.core.takes_over),
      arrived_at_(arrived_at),
      model_(model),
      metrics_(metrics),
      sink_(std::move(sink)),
      first_token_(!resumed_) {
  for (const RouterPrompt& prompt : parsed_.core.prompts) {
    Prompt& kept = prompts_.emplace_back();
    kept.tokens_count = static_cast<int>(prompt.tokens.size());
    kept.echo_due = parsed_.echo;
    if (parsed_.echo) kept.tokens = prompt.tokens;
  }
  for (const int prompt : parsed_.echoed_prompts) prompts_[prompt].echo_due = false;
  start_ = MakeStart(parsed_.resumed);
  MakeChoices();
}

void Generation::MakeChoices() {
  std::vector<ResumedChoice*> resumed(prompts_.size() * n_);
  for (ResumedChoice& choice : parsed_.resumed) {
    resumed[static_cast<size_t>(choice.prompt_index) * n_ + choice.choice_index] = &choice;
  }
  choices_.reserve(resumed.size());
  for (ResumedChoice* choice : resumed) {
    if (choice == nullptr) {
      choices_.push_back({ChoiceText(*model_.tokenizer, parsed_.stops, parsed_.stop_tokens)});
    } else {
      choices_.push_back({std::move(choice->text), static_cast<int>(choice->tokens.size())});
    }
  }
  parsed_.resumed.clear();
}

v1::GenerateResponse Generation::MakeStart(const std::vector<ResumedChoice>& resumed) const {
  v1::GenerateResponse start;
  start.set_request_id(client_id_);
  start.mutable_start()->set_seed(seed_);
  for (const RouterPrompt& prompt : parsed_.core.prompts) {
    start.mutable_start()->add_prompts()->mutable_ids()->Add(prompt.tokens.begin(),
                                                             prompt.tokens.end());
  }
  for (const ResumedChoice& choice : resumed) {
    if (choice.unsent.empty() && !choice.ended) continue;
    *start.add_deltas() = MakeResumedDelta(choice);
  }
  return start;
}

v1::Delta Generation::MakeResumedDelta(const ResumedChoice& resumed) const {
  v1::Delta delta;
  delta.set_prompt_index(resumed.prompt_index);
  delta.set_choice_index(resumed.choice_index);
  delta.set_offset(static_cast<int>(resumed.tokens.size()));
  delta.set_text(resumed.unsent);
  if (resumed.ended) {
    const bool stop = resumed.text.stopped() || resumed.text.stop_token();
    *delta.mutable_finish() = MakeFinish({.reason = stop ? EndReason::kStop : EndReason::kLength},
                                         resumed.text, static_cast<int>(resumed.tokens.size()),
                                         prompts_[resumed.prompt_index].tokens_count);
  }
  return delta;
}

Generation::Advice Generation::Begin() {
  if (resumed_) metrics_.resumed_requests.Increment();
  Advice advice;
  Send(std::move(start_), advice);
  return advice;
}

void Generation::Refuse(const absl::Status& status, TimeUs now) {
  status_ = status;
  Finish(now);
}

Generation::Advice Generation::OnDelta(ChoiceDelta delta, TimeUs now) {
  Choice& choice = choices_[static_cast<size_t>(delta.prompt_index) * n_ + delta.choice_index];
  Prompt& prompt = prompts_[delta.prompt_index];
  std::move(delta.prompt.begin(), delta.prompt.end(), std::back_inserter(prompt.scored));
  if (delta.migration_gap) metrics_.migration_gap_s.Observe(Seconds(*delta.migration_gap));
  if (first_token_ && !delta.tokens.empty()) {
    first_token_ = false;
    metrics_.first_token_s.Observe(Seconds(now - arrived_at_));
  }

  Advice advice;
  v1::Delta message = MakeDelta(delta, choice);
  const bool stopped = choice.text.stopped() && !std::exchange(choice.stopped, true);
  if (delta.end) NoteEnd(*delta.end, choice.tokens);
  const bool ended = message.has_finish();
  Send(Assemble(delta.prompt_index, std::move(message), ended), advice);
  if (delta.end && delta.end->request_done) {
    Finish(now);  // sends what was written, too
    return {};
  }
  advice.stop = stopped && !delta.end;
  return advice;
}

void Generation::Flush() {
  unflushed_ = false;
  sink_->Flush();
}

void Generation::Send(v1::GenerateResponse part, Advice& advice) {
  if (dropped_) return;
  using Room = ResponseSink::Room;
  Room room = Room::kMore;
  if (held_bytes_ > kHeldBytesMax) {
    room = Room::kTooBig;
  } else if (part.has_start() || !part.deltas().empty() || !part.echo().empty()) {
    room = sink_->Write(std::move(part));
    advice.flush = !std::exchange(unflushed_, true);
  }
  advice.pause = room == Room::kFull;
  advice.drop = dropped_ = room == Room::kTooBig;
  if (dropped_) status_ = ResourceExhausted("the answer is too big for one message; use Generate");
}

v1::Delta Generation::MakeDelta(const ChoiceDelta& delta, Choice& choice) {
  v1::Delta message;
  message.set_prompt_index(delta.prompt_index);
  message.set_choice_index(delta.choice_index);
  message.set_offset(choice.tokens);
  if (!delta.fingerprint.empty()) message.set_fingerprint(delta.fingerprint);
  int tokens = 0;
  for (const OutputToken& token : delta.tokens) {
    if (choice.text.stopped()) break;  // what follows a stop string is no part of the answer
    *message.add_tokens() = MakeToken(token);
    message.mutable_text()->append(choice.text.Push(token.id));
    ++tokens;
  }
  choice.tokens += tokens;
  metrics_.output_tokens.Increment(tokens);
  if (delta.end && !IsLost(*delta.end)) {
    message.mutable_text()->append(choice.text.Flush());
    *message.mutable_finish() = MakeFinish(*delta.end, choice.text, choice.tokens,
                                           prompts_[delta.prompt_index].tokens_count);
  }
  return message;
}

v1::TokenOutput Generation::MakeToken(const OutputToken& token) const {
  v1::TokenOutput out;
  out.set_id(token.id);
  if (!parsed_.logprobs) return out;
  out.set_logprob(token.logprob);
  for (const auto& [id, logprob] : token.top) {
    v1::TokenLogprob& top = *out.add_top();
    top.set_id(id);
    top.set_logprob(logprob);
  }
  return out;
}

v1::Finish Generation::MakeFinish(const ChoiceEnd& end, const ChoiceText& text, int tokens,
                                  int prompt_tokens) const {
  v1::Finish finish;
  const auto stop_string = text.stop_string();
  // The text may have ended in the very delta that ended the sequence for another reason.
  const bool stopped = stop_string && end.reason != EndReason::kError;
  finish.set_reason(stopped ? v1::FINISH_REASON_STOP : ReasonOf(end.reason));
  if (stopped) {
    finish.set_stop_string(*stop_string);
  } else if (end.reason == EndReason::kStop && text.stop_token()) {
    finish.set_stop_token_id(*text.stop_token());
  }
  finish.mutable_usage()->set_prompt_tokens(prompt_tokens);
  finish.mutable_usage()->set_cached_tokens(end.cached_tokens);
  finish.mutable_usage()->set_completion_tokens(tokens);
  finish.set_seed(seed_);
  finish.mutable_timings()->set_queue_us(end.queue_us);
  finish.mutable_timings()->set_prefill_us(end.prefill_us);
  finish.mutable_timings()->set_decode_us(end.decode_us);
  finish.set_logits_sha256(end.logits_sha256);
  if (end.reason == EndReason::kError) finish.set_error(MessageOf(end.status));
  return finish;
}

v1::PromptEcho Generation::MakeEcho(int prompt_index, const Prompt& prompt) const {
  v1::PromptEcho echo;
  echo.set_prompt_index(prompt_index);
  Detokenizer detokenizer(*model_.tokenizer);
  for (size_t i = 0; i < prompt.tokens.size(); ++i) {
    echo.mutable_text()->append(detokenizer.Push(prompt.tokens[i]));
    v1::TokenOutput& token = *echo.add_tokens();
    if (i > 0 && i <= prompt.scored.size()) token = MakeToken(prompt.scored[i - 1]);
    token.set_id(prompt.tokens[i]);
  }
  echo.mutable_text()->append(detokenizer.Flush());
  return echo;
}

v1::GenerateResponse Generation::Assemble(int prompt_index, v1::Delta delta, bool choice_ended) {
  Prompt& prompt = prompts_[prompt_index];
  v1::GenerateResponse part;
  const bool news = choice_ended || delta.tokens_size() > 0 || !delta.text().empty();
  if (!prompt.echo_due) {
    if (news) *part.add_deltas() = std::move(delta);
    return part;
  }
  const bool first_choice_ended = choice_ended && delta.choice_index() == 0;
  if (news) {
    held_bytes_ += static_cast<int64_t>(delta.ByteSizeLong());
    prompt.held.push_back(std::move(delta));
  }
  // Log-probabilities come with the prompt's first choice; if it ends without them all, what there
  // is has to do.
  const bool scored = !prompt_logprobs_ || std::ssize(prompt.scored) >= prompt.tokens_count - 1;
  if (!scored && !first_choice_ended) return part;
  *part.add_echo() = MakeEcho(prompt_index, prompt);
  prompt.echo_due = false;
  prompt.tokens = {};
  prompt.scored = {};
  for (v1::Delta& held : prompt.held) *part.add_deltas() = std::move(held);
  prompt.held.clear();
  return part;
}

void Generation::NoteEnd(const ChoiceEnd& end, int tokens) {
  if (status_.ok()) status_ = end.status;
  metrics_.queue_s.Observe(Seconds(end.queue_us));
  if (tokens > 1) metrics_.per_output_token_s.Observe(Seconds(end.decode_us) / (tokens - 1));
}

void Generation::Finish(TimeUs now) {
  if (status_.ok()) {
    for (const Prompt& prompt : prompts_) metrics_.prompt_tokens.Increment(prompt.tokens_count);
  }
  metrics_.end_to_end_s.Observe(Seconds(now - arrived_at_));
  metrics_.CountRequest(status_.code());
  sink_->Finish(status_);
}

}  // namespace facet
