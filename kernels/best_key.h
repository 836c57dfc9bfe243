#ifndef FACET_KERNELS_BEST_KEY_H_
#define FACET_KERNELS_BEST_KEY_H_

// A candidate for a row of logits as one number, so that the best of several is the largest,
// whoever compares them: ordered by Candidate::order descending (-0 equals 0), ties by id
// ascending. The order's bits, made to ascend, are the high word; the complement of the id is the
// low word.

#include <bit>
#include <cstdint>

#include "kernels/device.h"

namespace facet {

using BestKey = uint64_t;
static_assert(sizeof(BestKey) == kBestKeyFloats * sizeof(float));

// Below every candidate's: of no logits at all.
inline constexpr BestKey kNoKey = 0;
// Above every candidate's, as no order is NaN: one rank's logits that are not finite make the row
// so.
inline constexpr BestKey kNotFiniteKey = ~BestKey{0};

inline BestKey BestKeyOf(float order, int32_t id) {
  uint32_t bits = std::bit_cast<uint32_t>(order + 0.0f);  // -0 counts as 0
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return BestKey{bits} << 32 | ~static_cast<uint32_t>(id);
}

// Token 0 of what is no candidate, so that whoever goes on from it reads a row that there is.
inline BestToken BestTokenOf(BestKey key) {
  if (key == kNoKey) return {};
  return {key != kNotFiniteKey, static_cast<int32_t>(~static_cast<uint32_t>(key))};
}

}  // namespace facet

#endif  // FACET_KERNELS_BEST_KEY_H_
