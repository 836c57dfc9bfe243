#include "shard_worker/engine/prompt_lookup.h"

#include <algorithm>
#include <bit>

#include "base/prng.h"

namespace facet {
namespace {

// Grams that are looked up, the longer first: it is right more often.
constexpr int kGrams[] = {3, 2};
constexpr int kAlikeMax = 16;  // tokens that are compared
// How much the latest token counts in the share of right ones.
constexpr double kRate = 1.0 / 8;

// How many tokens end both tokens[0, end) and tokens[0, other) alike, if they are not many.
int Alike(std::span<const TokenId> tokens, size_t end, size_t other) {
  int alike = 0;
  const auto most = static_cast<int>(std::min<size_t>(kAlikeMax, std::min(end, other)));
  while (alike < most && tokens[end - 1 - alike] == tokens[other - 1 - alike]) ++alike;
  return alike;
}

}  // namespace

int PromptLookup::ClassOf(int alike) {
  if (alike < 4) return alike - 2;
  return alike < 8 ? 2 : alike < 16 ? 3 : 4;
}

void PromptLookup::Advance(std::span<const TokenId> tokens, int most, int entries_max) {
  if (tokens.size() == known_) return;
  Judge(tokens);
  Index(tokens, entries_max);
  Guess(tokens, most);
  known_ = tokens.size();
}

void PromptLookup::Judge(std::span<const TokenId> tokens) {
  const size_t came = std::min(guess_.size(), tokens.size() - known_);
  for (size_t i = 0; i < came; ++i) {
    const bool right = guess_[i] == tokens[known_ + i];
    double& hits = hits_[static_cast<size_t>(ClassOf(alike_ + static_cast<int>(i)))];
    hits += kRate * ((right ? 1 : 0) - hits);
    if (!right) return;
  }
}

int32_t& PromptLookup::Entry(std::span<const TokenId> gram) {
  uint64_t hash = gram.size();
  for (const TokenId token : gram) hash = Mix64(hash, static_cast<uint64_t>(token));
  return positions_[hash & (positions_.size() - 1)];
}

void PromptLookup::Index(std::span<const TokenId> tokens, int entries_max) {
  const size_t wanted = std::size(kGrams) * tokens.size();
  const auto most = std::bit_floor(static_cast<size_t>(entries_max));
  if (positions_.size() < std::min(wanted, most)) {
    // Twice what is needed now: it is made anew once per doubling.
    positions_.assign(std::min(2 * std::bit_ceil(wanted), most), -1);
    indexed_ = 0;
  }
  for (; indexed_ < tokens.size(); ++indexed_) {
    for (const size_t gram : kGrams) {
      if (gram > indexed_) continue;
      Entry(tokens.subspan(indexed_ - gram, gram)) = static_cast<int32_t>(indexed_);
    }
  }
}

void PromptLookup::Guess(std::span<const TokenId> tokens, int most) {
  guess_.clear();
  chances_.clear();
  const size_t size = tokens.size();
  for (const int gram : kGrams) {
    if (static_cast<size_t>(gram) > size) continue;
    const int32_t position = Entry(tokens.last(static_cast<size_t>(gram)));
    if (position < 0) continue;
    const auto from = static_cast<size_t>(position);
    alike_ = Alike(tokens, size, from);
    if (alike_ < gram) continue;
    double chance = 1;
    for (int i = 0; i < most; ++i) {
      const size_t next = from + static_cast<size_t>(i);
      guess_.push_back(next < size ? tokens[next] : guess_[next - size]);
      chance *= hits_[static_cast<size_t>(ClassOf(alike_ + i))];
      chances_.push_back(chance);
    }
    return;
  }
}

}  // namespace facet
