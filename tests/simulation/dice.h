#ifndef FACET_TESTS_SIMULATION_DICE_H_
#define FACET_TESTS_SIMULATION_DICE_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/prng.h"

namespace facet::sim {

// Draws of one actor: a function of the run's seed, the actor's name and a counter. So what one
// actor draws does not depend on how often another one did.
class Dice {
 public:
  Dice(uint64_t seed, std::string_view actor, uint64_t number = 0) : key_(Mix64(seed)) {
    for (const char c : actor) key_ = Mix64(key_, static_cast<uint64_t>(c));
    key_ = Mix64(key_, number);
  }

  uint64_t Next() { return Mix64(key_, counter_++); }
  // In [low, high].
  int64_t In(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Next() % static_cast<uint64_t>(high - low + 1));
  }
  // The same, small values likelier.
  int64_t Low(int64_t low, int64_t high) { return low + In(0, In(0, high - low)); }
  bool Percent(int64_t percent) { return In(0, 99) < percent; }
  template <typename Container>
  const auto& Of(const Container& values) {
    return values[static_cast<size_t>(In(0, static_cast<int64_t>(values.size()) - 1))];
  }

 private:
  uint64_t key_;
  uint64_t counter_ = 0;
};

}  // namespace facet::sim

#endif  // FACET_TESTS_SIMULATION_DICE_H_
