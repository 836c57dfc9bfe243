#include "client/percentiles.h"

#include <algorithm>

namespace facet {

Percentiles PercentilesOf(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const auto at = [&samples](size_t percent) {
    return samples[(percent * samples.size() + 99) / 100 - 1];
  };
  return {.p50 = at(50), .p90 = at(90), .p99 = at(99)};
}

}  // namespace facet
