#ifndef FACET_CLIENT_PERCENTILES_H_
#define FACET_CLIENT_PERCENTILES_H_

#include <vector>

namespace facet {

struct Percentiles {
  double p50 = 0;
  double p90 = 0;
  double p99 = 0;
};

// By the nearest rank: the smallest sample that at least this share of all does not exceed.
// Zeros if there are no samples.
Percentiles PercentilesOf(std::vector<double> samples);

}  // namespace facet

#endif  // FACET_CLIENT_PERCENTILES_H_
