#ifndef FACET_KERNELS_COLLECTIVES_SLICES_H_
#define FACET_KERNELS_COLLECTIVES_SLICES_H_

// How ranks divide the additions of an all-reduce. Who adds does not change the sums.

#include <algorithm>
#include <cstdint>

#include "kernels/sum_tree.h"

namespace facet {

// Slices begin at cache lines.
inline constexpr int64_t kLineFloats = 16;
// From this many bytes of one rank's roots on, a rank of more than two adds only its slice of the
// elements (README).
inline constexpr int64_t kSliceBytesMin = 16 << 10;

inline int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The part of `length` elements that a rank adds.
struct Slice {
  int64_t begin;
  int64_t length;
};

inline Slice SliceOf(int rank, int world, int64_t length) {
  const int64_t most = RoundUp((length + world - 1) / world, kLineFloats);
  const int64_t begin = std::min(rank * most, length);
  return {begin, std::min(most, length - begin)};
}

// The roots of the rank that has most of them.
inline int RootCountMax(const SumTree& tree) {
  int most = 0;
  for (int rank = 0; rank < tree.world(); ++rank) most = std::max(most, tree.root_count(rank));
  return most;
}

// Whether ranks add slices rather than everybody everything.
inline bool AddsSlices(const SumTree& tree, int64_t elements) {
  const int64_t bytes = elements * RootCountMax(tree) * static_cast<int64_t>(sizeof(float));
  return tree.world() > 2 && bytes >= kSliceBytesMin;
}

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_SLICES_H_
