#ifndef FACET_ROUTER_SERVICE_CHOICE_TEXT_H_
#define FACET_ROUTER_SERVICE_CHOICE_TEXT_H_

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/ids.h"
#include "router/core/request.h"
#include "router/tokenizer/detokenizer.h"
#include "router/tokenizer/stop_matcher.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

// The text of one choice, made from its tokens: whole characters only, held back while a stop
// string may be under way. Belongs to one thread; the tokenizer must outlive it.
class ChoiceText {
 public:
  // `stop_tokens`: sorted; they end the answer and are no part of its text.
  ChoiceText(const Tokenizer& tokenizer, StopMatcher stops,
             const std::vector<TokenId>& stop_tokens);

  struct Piece {
    size_t tokens = 0;  // of those pushed, how many belong to the answer
    std::string text;
  };
  // Takes the next tokens. Those after the one that completes a stop string do not belong to the
  // answer. After a stop string nothing does.
  Piece Push(std::span<const OutputToken> tokens);
  // The text still held back, now that no token follows.
  std::string Flush();

  // The stop string that ended the text, once one has.
  std::optional<std::string> stop_string() const;
  // The last token pushed, if it is a stop token.
  std::optional<TokenId> stop_token() const { return stop_token_; }

 private:
  Detokenizer detokenizer_;
  StopMatcher stops_;
  const std::vector<TokenId>& stop_tokens_;
  std::optional<TokenId> stop_token_;
};

}  // namespace facet

#endif  // FACET_ROUTER_SERVICE_CHOICE_TEXT_H_
