#ifndef FACET_ROUTER_TOKENIZER_DETOKENIZER_H_
#define FACET_ROUTER_TOKENIZER_DETOKENIZER_H_

#include <string>

#include "base/ids.h"
#include "router/tokenizer/tokenizer.h"

namespace facet {

struct DetokenizerOptions {
  // The tokens stand at the beginning of a text, so the space that Encode put before it, if the
  // vocabulary has that rule, is taken away. False where the tokens continue another text.
  bool at_text_start = true;
};

// Token ids to text, one id at a time. Never emits part of a character: bytes of an unfinished one
// wait for the next token, and what can no longer become a character is emitted as U+FFFD, one per
// maximal subpart. All state follows from the ids pushed, so replaying them rebuilds it.
// One per choice of a request; belongs to one thread. The tokenizer must outlive it.
class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer, DetokenizerOptions options = {});

  // The text that `id` completed: valid UTF-8, often empty.
  std::string Push(TokenId id);
  // The text still held back, now that nothing follows: "" or one U+FFFD.
  std::string Flush();

 private:
  const Tokenizer& tokenizer_;
  bool strip_space_;     // the next byte of output, if a space, is to be dropped
  std::string pending_;  // the beginning of a character, at most 3 bytes
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_DETOKENIZER_H_
