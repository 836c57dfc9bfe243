#include "router/tokenizer/special_cutter.h"

#include <algorithm>
#include <map>

#include "base/check.h"

namespace facet {
namespace {

uint64_t EdgeKey(uint32_t node, char byte) {
  return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
}

// The intervals cut so far. They never overlap.
class Taken {
 public:
  // How many bytes from `begin` on are free, at most `size`.
  size_t FreeAt(uint32_t begin, size_t size) const {
    auto next = ends_.upper_bound(begin);
    if (next != ends_.begin() && std::prev(next)->second.end > begin) return 0;
    return next == ends_.end() ? size : std::min<size_t>(size, next->first - begin);
  }
  void Add(const SpecialCutter::Cut& cut) { ends_[cut.begin] = {cut.begin + cut.size, cut.id}; }
  std::vector<SpecialCutter::Cut> Sorted() const {
    std::vector<SpecialCutter::Cut> cuts;
    cuts.reserve(ends_.size());
    for (const auto& [begin, rest] : ends_) cuts.push_back({begin, rest.end - begin, rest.id});
    return cuts;
  }

 private:
  struct Rest {
    uint32_t end;
    TokenId id;
  };
  std::map<uint32_t, Rest> ends_;  // by begin
};

bool WorseThan(const SpecialCutter::Cut& a, const SpecialCutter::Cut& b) {
  if (a.size != b.size) return a.size < b.size;
  if (a.id != b.id) return a.id > b.id;
  return a.begin > b.begin;
}

}  // namespace

void SpecialCutter::Add(std::string_view text, TokenId id, bool always) {
  FACET_CHECK(!text.empty());
  begins_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char byte : text) {
    const auto [edge, is_new] =
        edges_.try_emplace(EdgeKey(node, byte), static_cast<uint32_t>(nodes_.size()));
    if (is_new) nodes_.emplace_back();
    node = edge->second;
  }
  FACET_CHECK(nodes_[node].token < 0, "token {} has the text of token {}", id, nodes_[node].token);
  nodes_[node] = {id, always};
}

SpecialCutter::Cut SpecialCutter::LongestAt(std::string_view text, uint32_t begin, size_t limit,
                                            bool parse_special) const {
  Cut longest{begin, 0, -1};
  if (!begins_[static_cast<uint8_t>(text[begin])]) return longest;
  limit = std::min(limit, text.size() - begin);
  uint32_t node = 0;
  for (uint32_t size = 1; size <= limit; ++size) {
    const auto edge = edges_.find(EdgeKey(node, text[begin + size - 1]));
    if (edge == edges_.end()) break;
    node = edge->second;
    const bool counts = nodes_[node].always || parse_special;
    if (nodes_[node].token >= 0 && counts) longest = {begin, size, nodes_[node].token};
  }
  return longest;
}

std::vector<SpecialCutter::Cut> SpecialCutter::Find(std::string_view text,
                                                    bool parse_special) const {
  // One candidate per position: the longest token there. A candidate that meets a better one's cut
  // comes back as the longest token that still fits before it.
  std::vector<Cut> heap;
  for (uint32_t begin = 0; begin < text.size(); ++begin) {
    const Cut cut = LongestAt(text, begin, text.size(), parse_special);
    if (cut.size > 0) heap.push_back(cut);
  }
  std::make_heap(heap.begin(), heap.end(), WorseThan);
  Taken taken;
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), WorseThan);
    const Cut best = heap.back();
    heap.pop_back();
    const size_t free = taken.FreeAt(best.begin, best.size);
    if (free == best.size) {
      taken.Add(best);
    } else if (const Cut next = LongestAt(text, best.begin, free, parse_special); next.size > 0) {
      heap.push_back(next);
      std::push_heap(heap.begin(), heap.end(), WorseThan);
    }
  }
  return taken.Sorted();
}

}  // namespace facet
