#ifndef FACET_CLIENT_ARRIVALS_H_
#define FACET_CLIENT_ARRIVALS_H_

#include <cstdint>

namespace facet {

// When requests come that know nothing of each other: a Poisson process. The same seed gives the
// same times on every machine; at another rate they are only scaled.
class Arrivals {
 public:
  // REQUIRES: rate > 0, per second.
  Arrivals(double rate, uint64_t seed) : rate_(rate), seed_(seed) {}

  // Seconds from the start to the next one.
  double Next();

 private:
  const double rate_;
  const uint64_t seed_;
  uint64_t number_ = 0;
  double unit_time_ = 0;  // of the last one, at one arrival per second
};

}  // namespace facet

#endif  // FACET_CLIENT_ARRIVALS_H_
