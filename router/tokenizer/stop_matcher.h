#ifndef FACET_ROUTER_TOKENIZER_STOP_MATCHER_H_
#define FACET_ROUTER_TOKENIZER_STOP_MATCHER_H_

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace facet {

struct StopLimits {
  size_t max_strings = 32;
  size_t max_bytes = 1024;  // of one string
};

// Watches a stream of text for stop strings, across the places where the stream was cut.
//
// The stop string that is complete first wins; of several that are complete at the same character,
// the longest, as it began first. So the result depends on the text alone, never on how it came in
// pieces. Text that may yet turn out to be part of a stop string is held back.
// One per choice of a request; belongs to one thread.
class StopMatcher {
 public:
  // InvalidArgument names stop[i]: too many, empty, too long, or not UTF-8.
  static absl::StatusOr<StopMatcher> Create(std::vector<std::string> stops,
                                            const StopLimits& limits = {});

  // Takes the next piece and returns the text that is now certain to precede every stop string.
  // After a match everything is swallowed. REQUIRES: pieces are cut between characters.
  std::string Push(std::string_view text);
  // The text still held back, now that nothing follows.
  std::string Flush();

  // Which stop string ended the text, once one has.
  std::optional<size_t> matched() const { return matched_; }
  const std::string& stop(size_t index) const { return patterns_[index].text; }

 private:
  // Knuth-Morris-Pratt, one automaton per string.
  struct Pattern {
    std::string text;
    std::vector<size_t> failure;  // of each prefix: its longest border
    size_t state = 0;             // bytes of `text` that the stream now ends with
    // Moves on by one byte. REQUIRES: not matched yet.
    void Advance(char byte);
  };

  explicit StopMatcher(std::vector<std::string> stops);
  // Feeds one byte; returns the size of the string that is complete with it, or 0.
  size_t Advance(char byte);

  std::vector<Pattern> patterns_;
  std::string held_;
  std::optional<size_t> matched_;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_STOP_MATCHER_H_
