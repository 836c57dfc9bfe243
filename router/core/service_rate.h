#ifndef FACET_ROUTER_CORE_SERVICE_RATE_H_
#define FACET_ROUTER_CORE_SERVICE_RATE_H_

#include <cstdint>

#include "router/core/request.h"

namespace facet {

// How much work the groups do while requests wait for them: only then does it show what they can
// do. A mean over the last one to two windows of such time.
// Not thread-safe; the router core owns it.
class ServiceRate {
 public:
  explicit ServiceRate(TimeUs window) : window_(window) {}

  // Whether requests wait, from `now` on.
  void SetBusy(bool busy, TimeUs now);
  // Work that was done now, in any unit.
  void Add(int64_t work) {
    if (busy_) recent_.work += work;
  }
  // Forgets what was measured: there are other groups now.
  void Reset(TimeUs now);
  // 0: unknown, until a tenth of a window has been measured.
  double PerSecond(TimeUs now) const;

 private:
  struct Span {
    int64_t work = 0;
    TimeUs time = 0;
  };
  void Advance(TimeUs now);

  TimeUs window_;
  bool busy_ = false;
  TimeUs since_ = 0;  // busy: the time up to here is in recent_
  Span recent_;
  Span before_;
};

}  // namespace facet

#endif  // FACET_ROUTER_CORE_SERVICE_RATE_H_
