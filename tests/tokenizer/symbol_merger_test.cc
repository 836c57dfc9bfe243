#include "router/tokenizer/symbol_merger.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace facet {
namespace {

using Merges = std::map<std::pair<int32_t, int32_t>, MergedSymbol>;

std::optional<MergedSymbol> Lookup(const Merges& merges, int32_t left, int32_t right) {
  const auto merge = merges.find({left, right});
  if (merge == merges.end()) return std::nullopt;
  return merge->second;
}

// The definition: while any neighbours merge, merge the cheapest ones, the leftmost of equals.
std::vector<int32_t> MergeByDefinition(std::vector<int32_t> ids, const Merges& merges) {
  while (true) {
    size_t best = ids.size();
    MergedSymbol found{};
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto merged = Lookup(merges, ids[i], ids[i + 1]);
      if (merged.has_value() && (best == ids.size() || merged->cost < found.cost)) {
        best = i;
        found = *merged;
      }
    }
    if (best == ids.size()) return ids;
    ids[best] = found.id;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(SymbolMerger, AgreesWithTheDefinition) {
  SymbolMerger merger;
  for (uint32_t seed = 0; seed < 2000; ++seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int low, int high) {
      return std::uniform_int_distribution<int>(low, high)(random);
    };
    // A pair merges into an id of its own, as the strings of two different pairs do; costs repeat.
    Merges merges;
    for (int id = 3; id < 20; ++id) {
      merges.insert({{draw(0, id - 1), draw(0, id - 1)}, {static_cast<float>(draw(0, 9)), id}});
    }
    std::vector<int32_t> ids;
    for (int i = draw(0, 30); i > 0; --i) ids.push_back(draw(0, 2));

    merger.symbols().clear();
    for (uint32_t i = 0; i < ids.size(); ++i) merger.symbols().push_back({i, 1, ids[i]});
    merger.Merge([&](const Symbol& a, const Symbol& b) { return Lookup(merges, a.id, b.id); });
    std::vector<int32_t> merged;
    uint32_t at = 0;
    for (const Symbol& symbol : merger.symbols()) {
      if (symbol.size == 0) continue;
      EXPECT_EQ(symbol.begin, at);
      at += symbol.size;
      merged.push_back(symbol.id);
    }
    EXPECT_EQ(at, ids.size());
    ASSERT_EQ(merged, MergeByDefinition(ids, merges)) << "seed " << seed;
  }
}

TEST(SymbolMerger, WorkIsLinearInOneLongWord) {
  for (const size_t count : {1u << 10, 1u << 16, 1u << 20}) {
    SymbolMerger merger;
    for (uint32_t i = 0; i < count; ++i) merger.symbols().push_back({i, 1, 0});
    size_t calls = 0;
    // Equal neighbours double: the symbol of 2^k zeros is k.
    merger.Merge([&](const Symbol& a, const Symbol& b) -> std::optional<MergedSymbol> {
      ++calls;
      if (a.id != b.id) return std::nullopt;
      return MergedSymbol{static_cast<float>(a.id), a.id + 1};
    });
    EXPECT_LE(calls, 3 * count);
    EXPECT_EQ(merger.symbols()[0].size, count);
  }
}

}  // namespace
}  // namespace facet
