#include "router/service/resume_parser.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "router/service/request_parser.h"

namespace facet {
namespace {

absl::Status CheckIndex(std::string_view field, int64_t value, int64_t count) {
  if (value >= 0 && value < count) return absl::OkStatus();
  return InvalidArgument("{}: {} is outside [0, {})", field, value, count);
}

absl::Status CheckEchoed(const v1::GenerateRequest& request) {
  const auto& echoed = request.resume().echoed_prompts();
  if (!echoed.empty() && !request.echo()) {
    return InvalidArgument("resume.echoed_prompts: echo is not asked for");
  }
  for (int i = 0; i < echoed.size(); ++i) {
    FACET_RETURN_IF_ERROR(
        CheckIndex(fmt::format("resume.echoed_prompts[{}]", i), echoed[i], request.prompts_size()));
  }
  return absl::OkStatus();
}

// What can be said of a choice without knowing its text.
absl::Status CheckChoice(const v1::GenerateRequest& request, const v1::ChoiceResume& choice,
                         std::string_view name, const ResumeContext& context) {
  FACET_RETURN_IF_ERROR(CheckIndex(fmt::format("{}.prompt_index", name), choice.prompt_index(),
                                   request.prompts_size()));
  FACET_RETURN_IF_ERROR(
      CheckIndex(fmt::format("{}.choice_index", name), choice.choice_index(), context.n));
  FACET_RETURN_IF_ERROR(
      CheckTokenIds(choice.tokens(), fmt::format("{}.tokens", name), context.model));
  if (choice.tokens_size() > context.max_tokens[choice.prompt_index()]) {
    return InvalidArgument("{}.tokens: {} tokens, but the request allows {}", name,
                           choice.tokens_size(), context.max_tokens[choice.prompt_index()]);
  }
  if (choice.text_bytes() < 0) {
    return InvalidArgument("{}.text_bytes: {} is below 0", name, choice.text_bytes());
  }
  if (std::ssize(choice.fingerprint()) > context.fingerprint_bytes_max) {
    return InvalidArgument("{}.fingerprint: {} bytes, at most {} are allowed", name,
                           choice.fingerprint().size(), context.fingerprint_bytes_max);
  }
  if (!choice.tokens().empty() && !choice.finished() && choice.fingerprint().empty()) {
    return InvalidArgument("{}.fingerprint: is needed with tokens", name);
  }
  const auto& echoed = request.resume().echoed_prompts();
  const bool begun = choice.finished() || !choice.tokens().empty();
  if (request.echo() && begun &&
      std::find(echoed.begin(), echoed.end(), choice.prompt_index()) == echoed.end()) {
    return InvalidArgument("{}: its prompt's echo comes first, but is not in echoed_prompts", name);
  }
  return absl::OkStatus();
}

// Pushes the tokens; `out.unsent` is all their text then.
absl::Status Replay(const v1::ChoiceResume& choice, std::string_view name, ResumedChoice& out) {
  out.tokens.assign(choice.tokens().begin(), choice.tokens().end());
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    if (out.ended) {
      return InvalidArgument("{}.tokens[{}]: the token before it ended the choice", name, i);
    }
    out.unsent += out.text.Push(out.tokens[i]);
    out.ended = out.text.stop_token() || out.text.stop_string();
  }
  return absl::OkStatus();
}

absl::Status DropSentText(int64_t bytes, std::string_view name, std::string& text) {
  if (bytes > std::ssize(text)) {
    return InvalidArgument("{}.text_bytes: {}, but its tokens make {} bytes of text", name, bytes,
                           text.size());
  }
  const auto at = static_cast<size_t>(bytes);
  if (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) {
    return InvalidArgument("{}.text_bytes: {} lies inside a character", name, bytes);
  }
  text.erase(0, at);
  return absl::OkStatus();
}

absl::StatusOr<ResumedChoice> ParseChoice(const v1::GenerateRequest& request,
                                          const v1::ChoiceResume& choice, std::string_view name,
                                          const ResumeContext& context) {
  FACET_RETURN_IF_ERROR(CheckChoice(request, choice, name, context));
  ResumedChoice out{
      .prompt_index = choice.prompt_index(),
      .choice_index = choice.choice_index(),
      .fingerprint = choice.fingerprint(),
      .finished = choice.finished(),
      .text = ChoiceText(*context.model.tokenizer, context.stops, context.stop_tokens)};
  if (out.finished) return out;
  FACET_RETURN_IF_ERROR(Replay(choice, name, out));
  FACET_RETURN_IF_ERROR(DropSentText(choice.text_bytes(), name, out.unsent));
  const int max_tokens = context.max_tokens[choice.prompt_index()];
  out.ended = out.ended || (max_tokens > 0 && std::ssize(out.tokens) == max_tokens);
  if (out.ended) out.unsent += out.text.Flush();
  return out;
}

}  // namespace

absl::StatusOr<std::vector<ResumedChoice>> ParseResume(const v1::GenerateRequest& request,
                                                       const ResumeContext& context) {
  if (!request.has_seed()) return InvalidArgument("seed: is needed with resume");
  FACET_RETURN_IF_ERROR(CheckEchoed(request));
  std::vector<ResumedChoice> choices;
  std::set<std::pair<int, int>> seen;
  for (int i = 0; i < request.resume().choices_size(); ++i) {
    const std::string name = fmt::format("resume.choices[{}]", i);
    FACET_ASSIGN_OR_RETURN(ResumedChoice choice,
                           ParseChoice(request, request.resume().choices(i), name, context));
    if (!seen.insert({choice.prompt_index, choice.choice_index}).second) {
      return InvalidArgument("{}: prompt {} choice {} is there already", name, choice.prompt_index,
                             choice.choice_index);
    }
    choices.push_back(std::move(choice));
  }
  return choices;
}

}  // namespace facet
