#ifndef FACET_SHARD_WORKER_ENGINE_PROMPT_LOOKUP_H_
#define FACET_SHARD_WORKER_ENGINE_PROMPT_LOOKUP_H_

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/ids.h"

namespace facet {

// Guesses how a sequence goes on: as it did the last time that it had the same few tokens. And
// learns how good such guesses are, from every token that comes, whether or not the guess was made
// use of; so a sequence that begins to repeat itself is noticed at no cost.
// Deterministic. One sequence's; the engine's thread uses it.
class PromptLookup {
 public:
  // Takes in what `tokens`, all that the sequence has, gained since the last call, and guesses up
  // to `most` tokens that follow. The index has at most `entries_max` entries of 4 bytes; beyond
  // that what is long ago is forgotten. REQUIRES: what was there before is unchanged.
  void Advance(std::span<const TokenId> tokens, int most, int entries_max);

  // What may follow the tokens of the last Advance(), or nothing.
  std::span<const TokenId> guess() const { return guess_; }
  // The chance that the first i + 1 tokens of the guess are all right.
  double chance(int i) const { return chances_[static_cast<size_t>(i)]; }

 private:
  // A guess is as good as the number of tokens before it that are alike. In classes of 2, 3, 4-7,
  // 8-15, and 16 or more.
  static constexpr int kClasses = 5;

  static int ClassOf(int alike);
  void Judge(std::span<const TokenId> tokens);
  void Index(std::span<const TokenId> tokens, int entries_max);
  void Guess(std::span<const TokenId> tokens, int most);
  int32_t& Entry(std::span<const TokenId> gram);

  // By the hash of a gram: the position after its last occurrence, or -1. Others may have taken
  // the place, so the tokens are compared.
  std::vector<int32_t> positions_;
  size_t indexed_ = 0;  // positions that are in positions_
  size_t known_ = 0;    // tokens at the last Advance()
  std::vector<TokenId> guess_;
  std::vector<double> chances_;
  int alike_ = 0;  // tokens before guess_ that are as they were
  // Of guessed tokens, the share that were right lately. Where each begins is what text without
  // much repetition shows.
  std::array<double, kClasses> hits_ = {0.15, 0.3, 0.5, 0.7, 0.8};
};

}  // namespace facet

#endif  // FACET_SHARD_WORKER_ENGINE_PROMPT_LOOKUP_H_
