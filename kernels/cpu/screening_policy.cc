#include "kernels/cpu/screening_policy.h"

#include <algorithm>
#include <cmath>

namespace facet {
namespace {

constexpr double kSmoothing = 1.0 / 8;
// Completing should cost between these multiples of what the granules cost: more granules make it
// cheaper at first, then hardly.
constexpr double kCompletedLow = 0.25;
constexpr double kCompletedHigh = 0.75;
constexpr double kStep = 1.08;

}  // namespace

int ScreeningPolicy::Granules(SearchKind kind, int granules) {
  State& state = states_[static_cast<size_t>(kind)];
  if (state.pause > 0) {
    --state.pause;
    return -1;
  }
  if (state.share == 0) state.share = options_.first_share / 100.0;
  return static_cast<int>(std::lround(state.share * granules));
}

void ScreeningPolicy::Record(SearchKind kind, int granules, const Cost& cost) {
  State& state = states_[static_cast<size_t>(kind)];
  const double total = cost.first + cost.completed;
  state.cost = state.cost == 0 ? total : state.cost + kSmoothing * (total - state.cost);
  if (granules > 0 && cost.completed > kCompletedHigh * cost.granules) state.share *= kStep;
  if (cost.completed < kCompletedLow * cost.granules) state.share /= kStep;
  state.share = std::clamp(state.share, options_.least_share / 100.0, options_.most_share / 100.0);
  if (state.cost <= options_.pays_below) return;
  state.pause = options_.pause;
  state.cost = options_.pays_below;  // one more search in vain, and it pauses again
}

}  // namespace facet
