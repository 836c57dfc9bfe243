#include "serving/pulse.h"

namespace facet {
namespace {

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void Pulse::Beat() { last_us_ = NowUs(); }

std::chrono::milliseconds Pulse::Age() const {
  const int64_t last = last_us_;
  if (last == kResting) return std::chrono::milliseconds(0);
  return std::chrono::milliseconds((NowUs() - last) / 1000);
}

}  // namespace facet
