#ifndef FACET_TESTS_COLLECTIVES_TREE_ORACLE_H_
#define FACET_TESTS_COLLECTIVES_TREE_ORACLE_H_

// The definition of the tree sum, written the naive way, and the inputs it is tried on.

#include <cmath>
#include <cstdint>
#include <vector>

#include "base/prng.h"
#include "kernels/sum_tree.h"

namespace facet {

// Element `index` of leaf `leaf`: any order of additions but the tree's shows in the last bits,
// because magnitudes spread over 2^-12 .. 2^12.
inline float LeafValue(int leaf, int64_t index) {
  const uint64_t random = Mix64(static_cast<uint64_t>(leaf), static_cast<uint64_t>(index));
  const float fraction = static_cast<float>(random >> 40) * 0x1p-24f - 0.5f;
  return std::ldexp(fraction, static_cast<int>(random % 25) - 12);
}

// The sum over leaves [begin, end) of one element, by recursion on the definition.
inline float NaiveTreeSum(int begin, int end, int64_t index) {
  if (end - begin == 1) return LeafValue(begin, index);
  int half = 1;
  while (half * 2 < end - begin) half *= 2;
  const float left = NaiveTreeSum(begin, begin + half, index);
  const float right = NaiveTreeSum(begin + half, end, index);
  return left + right;
}

// Leaves over ranks as evenly as possible.
inline std::vector<int> EvenRanks(int leaves, int world) {
  std::vector<int> begin;
  for (int rank = 0; rank <= world; ++rank) begin.push_back(leaves * rank / world);
  return begin;
}

// The roots of one rank side by side, each by the naive sum.
inline std::vector<float> NaiveRoots(const SumTree& tree, int rank, int64_t elements) {
  std::vector<float> roots;
  roots.reserve(tree.roots(rank).size() * static_cast<size_t>(elements));
  for (const Subtree& root : tree.roots(rank)) {
    for (int64_t i = 0; i < elements; ++i) roots.push_back(NaiveTreeSum(root.begin, root.end, i));
  }
  return roots;
}

inline std::vector<float> NaiveTreeSums(int leaves, int64_t elements) {
  std::vector<float> sums;
  sums.reserve(static_cast<size_t>(elements));
  for (int64_t i = 0; i < elements; ++i) sums.push_back(NaiveTreeSum(0, leaves, i));
  return sums;
}

}  // namespace facet

#endif  // FACET_TESTS_COLLECTIVES_TREE_ORACLE_H_
