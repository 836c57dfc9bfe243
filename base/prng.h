#ifndef FACET_BASE_PRNG_H_
#define FACET_BASE_PRNG_H_

// Counter-based randomness: a draw is a pure function of its coordinates, never of a stream's
// state, so a replayed or re-sharded computation draws the same numbers.

#include <cstdint>

namespace facet {

// The 64-bit finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
// Generators", OOPSLA 2014): a bijection with full avalanche.
constexpr uint64_t Mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

constexpr uint64_t Mix64(uint64_t a, uint64_t b) { return Mix64(Mix64(a) ^ b); }

// The seed of one choice of one prompt of a request.
constexpr uint64_t SequenceSeed(uint64_t request_seed, uint32_t prompt_index,
                                uint32_t choice_index) {
  return Mix64(request_seed, (uint64_t{prompt_index} << 32) | choice_index);
}

// The key of all draws of one sequence at one position. The draw of one token id is
// Mix64(key ^ id) >> 40, a 24-bit uniform.
constexpr uint64_t PositionKey(uint64_t sequence_seed, int64_t position) {
  return Mix64(sequence_seed, static_cast<uint64_t>(position));
}

}  // namespace facet

#endif  // FACET_BASE_PRNG_H_
