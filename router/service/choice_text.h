#ifndef FACET_ROUTER_SERVICE_CHOICE_TEXT_H_
#define FACET_ROUTER_SERVICE_CHOICE_TEXT_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "router/tokenizer/detokenizer.h"
#include "router/tokenizer/stop_matcher.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

// The text of one choice, made from its tokens: whole characters only, held back while a stop
// string may be under way. All of it follows from the tokens pushed, so pushing them again rebuilds
// it. Belongs to one thread; the tokenizer must outlive it.
class ChoiceText {
 public:
  // `stop_tokens`: sorted; they end the answer and are no part of its text. Its buffer must outlive
  // this.
  ChoiceText(const Tokenizer& tokenizer, StopMatcher stops, std::span<const TokenId> stop_tokens);

  // Takes the next token of the answer and returns the text that is certain now.
  // REQUIRES: no stop string has ended the text.
  std::string Push(TokenId token);
  // The text still held back, now that no token follows.
  std::string Flush();

  // A stop string has ended the text: no further token belongs to the answer.
  bool stopped() const { return stops_.matched().has_value(); }
  // The stop string that ended the text, once one has.
  std::optional<std::string> stop_string() const;
  // The last token pushed, if it is a stop token.
  std::optional<TokenId> stop_token() const { return stop_token_; }

 private:
  Detokenizer detokenizer_;
  StopMatcher stops_;
  std::span<const TokenId> stop_tokens_;
  std::optional<TokenId> stop_token_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_CHOICE_TEXT_H_
