#include "kernels/cpu/screening_policy.h"

#include <algorithm>
#include <cmath>

namespace facet {
namespace {

constexpr double kSmoothing = 1.0 / 16;
// What is assumed before anything is known: some searches in vain do not switch screening off.
constexpr double kFirstCost = 0.75;
// Completing should cost between these multiples of what the granules cost: more granules make it
// cheaper at first, then hardly.
constexpr double kCompletedLow = 0.25;
constexpr double kCompletedHigh = 0.75;
constexpr double kStep = 1.08;
constexpr double kStepAfterFailure = 1.3;

}  // namespace

int ScreeningPolicy::Granules(SearchKind kind, int granules) {
  State& state = states_[static_cast<size_t>(kind)];
  if (state.pause > 0) {
    --state.pause;
    return -1;
  }
  if (state.share == 0) {
    state.share = options_.first_share / 100.0;
    state.cost = kFirstCost;
  }
  return static_cast<int>(std::lround(state.share * granules));
}

void ScreeningPolicy::Record(SearchKind kind, const Cost& cost) {
  State& state = states_[static_cast<size_t>(kind)];
  const double total = cost.first + cost.completed;
  state.cost += kSmoothing * (total - state.cost);
  if (cost.completed >= 1) {
    state.share *= kStepAfterFailure;
  } else if (cost.completed > kCompletedHigh * cost.granules) {
    state.share *= kStep;
  }
  if (cost.completed < kCompletedLow * cost.granules) state.share /= kStep;
  state.share = std::clamp(state.share, options_.least_share / 100.0, options_.most_share / 100.0);
  if (state.cost < kFirstCost) state.last_pause = 0;
  if (state.cost <= options_.pays_below) return;
  state.last_pause = std::clamp(2 * state.last_pause, options_.pause, options_.pause_max);
  state.pause = state.last_pause;
  state.cost = options_.pays_below;  // unless the next searches are cheaper, it pauses again
}

}  // namespace facet
