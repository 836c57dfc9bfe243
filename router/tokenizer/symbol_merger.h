#ifndef FACET_ROUTER_TOKENIZER_SYMBOL_MERGER_H_
#define FACET_ROUTER_TOKENIZER_SYMBOL_MERGER_H_

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace facet {

// A run of the text that is one unit so far.
struct Symbol {
  uint32_t begin;
  uint32_t size;  // bytes; 0 once merged into its left neighbour
  int32_t id;     // the tokenizer's own number for it
};

// What two neighbours would become. The lowest cost merges first, then the leftmost.
struct MergedSymbol {
  float cost;
  int32_t id;
};

// Byte pair encoding of one run of symbols, O(n log n) in their number: candidates wait in a heap,
// and one whose symbols have changed meanwhile is recognised by its size and dropped.
// Reusable, so that the words of a text share their memory. Not thread-safe.
class SymbolMerger {
 public:
  // Where the caller puts the symbols, in order, and finds what is left of them: those with
  // size > 0.
  std::vector<Symbol>& symbols() { return symbols_; }

  // Merges until nothing can be merged. `find(left, right)` is a std::optional<MergedSymbol>,
  // called at most 3 times per symbol.
  template <typename Find>
  void Merge(const Find& find) {
    const auto count = static_cast<int32_t>(symbols_.size());
    links_.resize(symbols_.size());
    heap_.clear();
    for (int32_t i = 0; i < count; ++i) links_[i] = {i - 1, i + 1 < count ? i + 1 : -1};
    for (int32_t i = 0; i + 1 < count; ++i) Consider(i, find);
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), Later);
      const Candidate best = heap_.back();
      heap_.pop_back();
      if (Apply(best)) {
        if (links_[best.left].previous >= 0) Consider(links_[best.left].previous, find);
        Consider(best.left, find);
      }
    }
  }

 private:
  struct Links {
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    float cost;
    int32_t left;
    uint32_t size;  // of both together, when this was found
    int32_t id;
  };

  static bool Later(const Candidate& a, const Candidate& b) {
    return a.cost > b.cost || (a.cost == b.cost && a.left > b.left);
  }

  // Queues the merge of `left` with its right neighbour, if there is one.
  template <typename Find>
  void Consider(int32_t left, const Find& find) {
    const int32_t right = links_[left].next;
    if (right < 0) return;
    const std::optional<MergedSymbol> merged = find(symbols_[left], symbols_[right]);
    if (!merged.has_value()) return;
    heap_.push_back({merged->cost, left, symbols_[left].size + symbols_[right].size, merged->id});
    std::push_heap(heap_.begin(), heap_.end(), Later);
  }

  // False if either symbol has changed since: symbols only grow, so equal size means unchanged.
  bool Apply(const Candidate& candidate) {
    Symbol& left = symbols_[candidate.left];
    Links& links = links_[candidate.left];
    if (left.size == 0 || links.next < 0) return false;
    Symbol& right = symbols_[links.next];
    if (left.size + right.size != candidate.size) return false;
    left.size = candidate.size;
    left.id = candidate.id;
    right.size = 0;
    links.next = links_[links.next].next;
    if (links.next >= 0) links_[links.next].previous = candidate.left;
    return true;
  }

  std::vector<Symbol> symbols_;
  std::vector<Links> links_;
  std::vector<Candidate> heap_;
};

}  // namespace facet

#endif  // FACET_ROUTER_TOKENIZER_SYMBOL_MERGER_H_
