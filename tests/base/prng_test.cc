#include "base/prng.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <set>
#include <vector>

namespace facet {
namespace {

TEST(Prng, Mix64IsTheOutputOfSplitMix64) {
  // The first outputs of java.util.SplittableRandom's generator (and of splitmix64.c by Vigna) for
  // the seeds 0 and 1234567: the state grows by the golden gamma, the output is its finaliser.
  EXPECT_EQ(Mix64(0), 0xe220a8397b1dcdafull);
  EXPECT_EQ(Mix64(1234567), 6457827717110365317ull);
  EXPECT_EQ(Mix64(1234567 + 0x9e3779b97f4a7c15ull), 3203168211198807973ull);
}

TEST(Prng, EveryInputBitFlipsEveryOutputBitHalfTheTime) {
  constexpr int kInputs = 4'096;
  for (int in = 0; in < 64; ++in) {
    std::vector<int> flips(64, 0);
    for (uint64_t i = 0; i < kInputs; ++i) {
      const uint64_t input = i * 0xd1342543de82ef95ull;  // counted in all bits, no pair twice
      const uint64_t changed = Mix64(input) ^ Mix64(input ^ (uint64_t{1} << in));
      for (int out = 0; out < 64; ++out) flips[out] += static_cast<int>((changed >> out) & 1);
    }
    // Six standard deviations of a fair coin: 6 * sqrt(4096) / 2.
    for (int out = 0; out < 64; ++out)
      EXPECT_NEAR(flips[out], kInputs / 2, 192) << in << " " << out;
  }
}

TEST(Prng, CoordinatesAreNotInterchangeable) {
  std::set<uint64_t> seen;
  for (uint32_t prompt = 0; prompt < 20; ++prompt) {
    for (uint32_t choice = 0; choice < 20; ++choice) {
      for (int64_t position = 0; position < 20; ++position) {
        seen.insert(PositionKey(SequenceSeed(42, prompt, choice), position));
      }
    }
  }
  EXPECT_EQ(seen.size(), 20u * 20u * 20u);
  EXPECT_NE(SequenceSeed(1, 0, 0), SequenceSeed(2, 0, 0));
}

TEST(Prng, DrawsOfAPositionAreUniform) {
  constexpr int kBuckets = 256;
  constexpr int kDraws = 256 * 1'024;
  const uint64_t key = PositionKey(SequenceSeed(7, 0, 0), 100);
  std::vector<int> counts(kBuckets, 0);
  for (uint64_t id = 0; id < kDraws; ++id) ++counts[(Mix64(key ^ id) >> 40) >> 16];
  double chi_square = 0;
  for (const int count : counts) chi_square += std::pow(count - 1'024, 2) / 1'024;
  // 255 degrees of freedom: mean 255, deviation sqrt(510) = 22.6; five of them either way.
  EXPECT_NEAR(chi_square, 255, 113);
}

static_assert(PositionKey(SequenceSeed(1, 2, 3), 4) != 0, "usable in constant expressions");

}  // namespace
}  // namespace facet
