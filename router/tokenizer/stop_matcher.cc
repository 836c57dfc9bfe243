#include "router/tokenizer/stop_matcher.h"

#include <algorithm>
#include <utility>

#include "base/status.h"
#include "router/tokenizer/utf8.h"

namespace facet {
namespace {

std::vector<size_t> BordersOf(std::string_view text) {
  std::vector<size_t> borders(text.size() + 1, 0);
  size_t border = 0;
  for (size_t i = 1; i < text.size(); ++i) {
    while (border > 0 && text[i] != text[border]) border = borders[border];
    if (text[i] == text[border]) ++border;
    borders[i + 1] = border;
  }
  return borders;
}

}  // namespace

absl::StatusOr<StopMatcher> StopMatcher::Create(std::vector<std::string> stops,
                                                const StopLimits& limits) {
  if (stops.size() > limits.max_strings) {
    return InvalidArgument("stop has {} strings; at most {} are supported", stops.size(),
                           limits.max_strings);
  }
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) return InvalidArgument("stop[{}] is empty", i);
    if (stops[i].size() > limits.max_bytes) {
      return InvalidArgument("stop[{}] has {} bytes; at most {} are supported", i, stops[i].size(),
                             limits.max_bytes);
    }
    if (!IsValidUtf8(stops[i])) return InvalidArgument("stop[{}] is not UTF-8", i);
  }
  return StopMatcher(std::move(stops));
}

StopMatcher::StopMatcher(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    std::vector<size_t> failure = BordersOf(stop);
    patterns_.push_back({std::move(stop), std::move(failure)});
  }
}

void StopMatcher::Pattern::Advance(char byte) {
  while (state > 0 && text[state] != byte) state = failure[state];
  if (text[state] == byte) ++state;
}

size_t StopMatcher::Advance(char byte) {
  size_t longest = 0;
  for (size_t i = 0; i < patterns_.size(); ++i) {
    patterns_[i].Advance(byte);
    const size_t size = patterns_[i].text.size();
    if (patterns_[i].state == size && size > longest) {
      longest = size;
      matched_ = i;
    }
  }
  return longest;
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_.has_value()) return {};
  for (const char byte : text) {
    held_ += byte;
    if (const size_t stop = Advance(byte); stop > 0) {
      held_.resize(held_.size() - stop);
      return std::exchange(held_, {});
    }
  }
  size_t hold = 0;
  for (const Pattern& pattern : patterns_) hold = std::max(hold, pattern.state);
  std::string certain = held_.substr(0, held_.size() - hold);
  held_.erase(0, certain.size());
  return certain;
}

std::string StopMatcher::Flush() { return std::exchange(held_, {}); }

}  // namespace facet
