#include "router/core/service_rate.h"

#include <utility>

namespace facet {

void ServiceRate::SetBusy(bool busy, TimeUs now) {
  if (busy_) Advance(now);
  busy_ = busy;
  since_ = now;
}

void ServiceRate::Advance(TimeUs now) {
  recent_.time += now - since_;
  since_ = now;
  if (recent_.time >= window_) before_ = std::exchange(recent_, {});
}

void ServiceRate::Reset(TimeUs now) {
  recent_ = before_ = {};
  since_ = now;
}

double ServiceRate::PerSecond(TimeUs now) const {
  const TimeUs time = before_.time + recent_.time + (busy_ ? now - since_ : 0);
  if (time < window_ / 10) return 0;
  return static_cast<double>(before_.work + recent_.work) * 1e6 / static_cast<double>(time);
}

}  // namespace facet
