#ifndef FACET_SHARD_WORKER_SERVICE_CLOCK_H_
#define FACET_SHARD_WORKER_SERVICE_CLOCK_H_

#include <chrono>

#include "shard_worker/engine/engine.h"

namespace facet {

// Microseconds of the steady clock.
inline TimeUs SteadyNow() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace facet

#endif  // FACET_SHARD_WORKER_SERVICE_CLOCK_H_
