#include "router/service/choice_text.h"

#include <algorithm>
#include <utility>

namespace facet {

ChoiceText::ChoiceText(const Tokenizer& tokenizer, StopMatcher stops,
                       const std::vector<TokenId>& stop_tokens)
    // The answer continues the prompt, so a space it begins with is its own.
    : detokenizer_(tokenizer, {.at_text_start = false}),
      stops_(std::move(stops)),
      stop_tokens_(stop_tokens) {}

ChoiceText::Piece ChoiceText::Push(std::span<const OutputToken> tokens) {
  Piece piece;
  for (const OutputToken& token : tokens) {
    if (stops_.matched()) break;
    ++piece.tokens;
    if (std::binary_search(stop_tokens_.begin(), stop_tokens_.end(), token.id)) {
      stop_token_ = token.id;
    } else {
      stop_token_.reset();
      piece.text += stops_.Push(detokenizer_.Push(token.id));
    }
  }
  return piece;
}

std::string ChoiceText::Flush() {
  if (stops_.matched()) return {};
  std::string text = stops_.Push(detokenizer_.Flush());
  return stops_.matched() ? text : text + stops_.Flush();
}

std::optional<std::string> ChoiceText::stop_string() const {
  if (!stops_.matched()) return std::nullopt;
  return stops_.stop(*stops_.matched());
}

}  // namespace facet
