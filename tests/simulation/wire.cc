#include "tests/simulation/wire.h"

#include <algorithm>
#include <utility>

namespace facet::sim {

void Wire::Send(WireEnd from, std::function<void()> deliver) {
  if (!At(from).open) return;
  const WireEnd to = Other(from);
  Side& side = At(to);
  side.last_arrival = std::max({side.last_arrival, held_until_, stage_->now() + Delay()});
  stage_->queue.At(side.last_arrival, [self = shared_from_this(), to, deliver = std::move(deliver),
                                       arrival = side.last_arrival] {
    if (self->At(to).open && arrival <= self->At(to).cut) deliver();
  });
}

void Wire::Shut(WireEnd end) {
  At(end).open = false;
  At(end).lost = nullptr;  // it may own what owns the wire
}

void Wire::Tell(WireEnd end, TimeUs time) {
  Side& side = At(end);
  side.last_arrival = std::max({side.last_arrival, held_until_, time});
  stage_->queue.At(side.last_arrival, [self = shared_from_this(), end] {
    if (!self->At(end).open) return;
    const std::function<void()> lost = std::exchange(self->At(end).lost, nullptr);
    self->Shut(end);
    if (lost) lost();
  });
}

void Wire::Cut(WireEnd end) {
  Side& side = At(end);
  if (!side.open || side.cut != kNever) return;
  side.cut = stage_->now() + dice_.In(0, delays_.most);
  side.last_arrival = std::min(side.last_arrival, side.cut);
  Tell(end, side.cut + dice_.In(0, delays_.notice_most));
}

void Wire::Close(WireEnd by) {
  if (!At(by).open) return;
  Shut(by);
  Tell(Other(by), stage_->now() + Delay());
}

void Wire::Die(WireEnd by) {
  if (!At(by).open) return;
  Shut(by);
  Cut(Other(by));
}

void Wire::Break() {
  Cut(WireEnd::kNear);
  Cut(WireEnd::kFar);
}

}  // namespace facet::sim
