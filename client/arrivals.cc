#include "client/arrivals.h"

#include <cmath>

#include "base/prng.h"

namespace facet {

double Arrivals::Next() {
  // 53 bits, so that 1 - uniform is never 0.
  const double uniform = static_cast<double>(Mix64(seed_, number_++) >> 11) * 0x1p-53;
  unit_time_ -= std::log1p(-uniform);
  return unit_time_ / rate_;
}

}  // namespace facet
