#ifndef FACET_SERVING_PULSE_H_
#define FACET_SERVING_PULSE_H_

#include <atomic>
#include <chrono>
#include <cstdint>

namespace facet {

// How long ago the thread that matters in a process last showed that it moves. That thread beats,
// also while it waits; any thread asks.
class Pulse {
 public:
  void Beat();
  // Before something of unknown length, such as loading: until the next Beat() nobody is to worry.
  void Rest() { last_us_ = kResting; }
  // 0 while resting, and before the first Beat().
  std::chrono::milliseconds Age() const;

 private:
  static constexpr int64_t kResting = -1;
  std::atomic<int64_t> last_us_{kResting};
};

}  // namespace facet

#endif  // FACET_SERVING_PULSE_H_
