#include "client/answer.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/status.h"
#include "client/json.h"

namespace facet {
namespace {

void WriteTokens(const auto& tokens, JsonWriter& json) {
  json.BeginArray();
  for (const v1::TokenOutput& token : tokens) {
    json.BeginObject().Key("id").Integer(token.id());
    json.Key("logprob").Number(token.logprob());
    if (!token.top().empty()) {
      json.Key("top").BeginArray();
      for (const v1::TokenLogprob& top : token.top()) {
        json.BeginObject().Key("id").Integer(top.id());
        json.Key("logprob").Number(top.logprob()).EndObject();
      }
      json.EndArray();
    }
    json.EndObject();
  }
  json.EndArray();
}

std::string Hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

void WriteFinish(const v1::Finish& finish, JsonWriter& json) {
  json.Key("finish_reason").String(FinishName(finish.reason()));
  if (finish.has_stop_string()) json.Key("stop_string").String(finish.stop_string());
  if (finish.has_stop_token_id()) json.Key("stop_token_id").Integer(finish.stop_token_id());
  if (!finish.error().empty()) json.Key("error").String(finish.error());
  if (!finish.logits_sha256().empty()) {
    json.Key("logits_sha256").String(Hex(finish.logits_sha256()));
  }
  json.Key("seed").String(fmt::format("{}", finish.seed()));  // JSON readers round above 2^53
  json.Key("usage").BeginObject();
  json.Key("prompt_tokens").Integer(finish.usage().prompt_tokens());
  json.Key("cached_tokens").Integer(finish.usage().cached_tokens());
  json.Key("completion_tokens").Integer(finish.usage().completion_tokens()).EndObject();
  json.Key("timings").BeginObject();
  json.Key("queue_s").Number(static_cast<double>(finish.timings().queue_us()) / 1e6);
  json.Key("prefill_s").Number(static_cast<double>(finish.timings().prefill_us()) / 1e6);
  json.Key("decode_s").Number(static_cast<double>(finish.timings().decode_us()) / 1e6).EndObject();
}

void WriteChoice(const Answer& answer, int index, JsonWriter& json) {
  const ChoiceState& choice = answer.choice(index);
  json.BeginObject().Key("prompt_index").Integer(index / answer.n());
  json.Key("choice_index").Integer(index % answer.n());
  json.Key("text").String(choice.text);
  json.Key("tokens");
  WriteTokens(choice.tokens, json);
  if (choice.finish) WriteFinish(*choice.finish, json);
  json.EndObject();
}

double Seconds(ClientClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

Answer::Answer(int prompts, int n) : n_(n), choices_(static_cast<size_t>(prompts) * n) {}

absl::Status Answer::Add(const v1::GenerateResponse& response, ClientClock::time_point now) {
  begun_ = true;
  if (!response.request_id().empty()) request_id_ = response.request_id();
  if (response.has_start()) FACET_RETURN_IF_ERROR(AddStart(response.start()));
  for (const v1::PromptEcho& echo : response.echo()) echo_.push_back(echo);
  for (const v1::Delta& delta : response.deltas()) FACET_RETURN_IF_ERROR(AddDelta(delta, now));
  return absl::OkStatus();
}

absl::Status Answer::AddStart(const v1::StreamStart& start) {
  if (!start_) {
    start_ = start;
    return absl::OkStatus();
  }
  ++resumptions_;
  if (start.seed() != start_->seed()) {
    return Internal("the stream went on with seed {} instead of {}", start.seed(), start_->seed());
  }
  if (start.SerializeAsString() != start_->SerializeAsString()) {
    return Internal("the stream went on with other prompt tokens");
  }
  return absl::OkStatus();
}

bool Answer::complete() const {
  return std::all_of(choices_.begin(), choices_.end(),
                     [](const ChoiceState& choice) { return choice.finish.has_value(); });
}

absl::Status Answer::AddDelta(const v1::Delta& delta, ClientClock::time_point now) {
  const int prompts = choices() / n_;
  if (delta.prompt_index() < 0 || delta.prompt_index() >= prompts || delta.choice_index() < 0 ||
      delta.choice_index() >= n_) {
    return Internal("the router sent prompt {} choice {} of {} prompts and {} choices",
                    delta.prompt_index(), delta.choice_index(), prompts, n_);
  }
  ChoiceState& choice = choices_[delta.prompt_index() * n_ + delta.choice_index()];
  if (choice.finish) return Internal("the router sent more of a choice that had ended");
  if (delta.offset() != static_cast<int>(choice.tokens.size())) {
    return Internal("the router sent offset {} where {} tokens had come", delta.offset(),
                    choice.tokens.size());
  }
  if (!delta.fingerprint().empty()) choice.fingerprint = delta.fingerprint();
  choice.text += delta.text();
  choice.tokens.insert(choice.tokens.end(), delta.tokens().begin(), delta.tokens().end());
  if (delta.has_finish()) choice.finish = delta.finish();
  if (delta.tokens_size() > 0) {
    tokens_ += delta.tokens_size();
    if (!first_token_at_) first_token_at_ = now;
    last_token_at_ = now;
  }
  return absl::OkStatus();
}

absl::Status Answer::Outcome() const {
  for (const ChoiceState& choice : choices_) {
    if (!choice.finish) return Internal("the router ended the stream before the answer's end");
    switch (choice.finish->reason()) {
      case v1::FINISH_REASON_STOP:
      case v1::FINISH_REASON_LENGTH:
        break;
      case v1::FINISH_REASON_DEADLINE:
        return DeadlineExceeded("the deadline passed");
      case v1::FINISH_REASON_CANCELLED:
        return MakeStatus(absl::StatusCode::kCancelled, "cancelled");
      default:
        return Internal("{}", choice.finish->error());
    }
  }
  return absl::OkStatus();
}

std::string_view FinishName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "cancelled";
    case v1::FINISH_REASON_DEADLINE:
      return "deadline";
    case v1::FINISH_REASON_ERROR:
      return "error";
    default:
      return "unfinished";
  }
}

std::string DescribeRates(const Answer& answer, ClientClock::time_point sent) {
  std::string text = fmt::format("{} token{}", answer.tokens(), answer.tokens() == 1 ? "" : "s");
  if (const auto first = answer.first_token_at()) {
    // The first tokens of the choices come together; the rest took the time after them.
    const int further = answer.tokens() - answer.choices();
    const double seconds = Seconds(answer.last_token_at() - *first);
    if (further > 0 && seconds > 0) text += fmt::format(", {:.1f} tokens/s", further / seconds);
    text += fmt::format(", first after {:.3f} s", Seconds(*first - sent));
  }
  int prompt = 0;
  int cached = 0;
  std::set<std::string_view> reasons;
  for (int i = 0; i < answer.choices(); ++i) {
    const auto& finish = answer.choice(i).finish;
    reasons.insert(FinishName(finish ? finish->reason() : v1::FINISH_REASON_UNSPECIFIED));
    if (!finish || i % answer.n() != 0) continue;
    prompt += finish->usage().prompt_tokens();
    cached += finish->usage().cached_tokens();
  }
  text +=
      fmt::format(" (prompt {} tokens, {} cached); {}", prompt, cached, fmt::join(reasons, ", "));
  if (const auto& finish = answer.choice(0).finish) {
    text += fmt::format("; seed {}", finish->seed());
  }
  if (answer.resumptions() > 0) text += fmt::format("; resumed {} x", answer.resumptions());
  return text;
}

std::string ToJson(const Answer& answer) {
  JsonWriter json;
  json.BeginObject().Key("request_id").String(answer.request_id());
  json.Key("choices").BeginArray();
  for (int i = 0; i < answer.choices(); ++i) WriteChoice(answer, i, json);
  json.EndArray();
  if (!answer.echo().empty()) {
    json.Key("echo").BeginArray();
    for (const v1::PromptEcho& echo : answer.echo()) {
      json.BeginObject().Key("prompt_index").Integer(echo.prompt_index());
      json.Key("text").String(echo.text());
      json.Key("tokens");
      WriteTokens(echo.tokens(), json);
      json.EndObject();
    }
    json.EndArray();
  }
  if (answer.resumptions() > 0) json.Key("resumptions").Integer(answer.resumptions());
  json.EndObject();
  return json.text();
}

}  // namespace facet
