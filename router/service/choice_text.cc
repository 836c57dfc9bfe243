#include "router/service/choice_text.h"

#include <algorithm>
#include <utility>

namespace facet {

ChoiceText::ChoiceText(const Tokenizer& tokenizer, StopMatcher stops,
                       std::span<const TokenId> stop_tokens)
    // The answer continues the prompt, so a space it begins with is its own.
    : detokenizer_(tokenizer, {.at_text_start = false}),
      stops_(std::move(stops)),
      stop_tokens_(stop_tokens) {}

std::string ChoiceText::Push(TokenId token) {
  if (std::binary_search(stop_tokens_.begin(), stop_tokens_.end(), token)) {
    stop_token_ = token;
    return {};
  }
  stop_token_.reset();
  return stops_.Push(detokenizer_.Push(token));
}

std::string ChoiceText::Flush() {
  if (stopped()) return {};
  std::string text = stops_.Push(detokenizer_.Flush());
  return stopped() ? text : text + stops_.Flush();
}

std::optional<std::string> ChoiceText::stop_string() const {
  if (!stopped()) return std::nullopt;
  return stops_.stop(*stops_.matched());
}

}  // namespace facet
