#include "kernels/cuda/stream_wait.h"

#include <thread>

#include "base/check.h"
#include "base/status.h"

namespace facet::cuda {
namespace {

constexpr std::chrono::microseconds kNap{50};

}  // namespace

StreamWait::~StreamWait() {
  if (end_ != nullptr) DestroyEvent(end_);
}

absl::Status StreamWait::Init(Stream stream) {
  stream_ = stream;
  FACET_ASSIGN_OR_RETURN(end_, MakeEvent());
  return absl::OkStatus();
}

void StreamWait::SetGuard(StreamGuard* guard) {
  FACET_CHECK(guard == nullptr || guard_ == nullptr, "another communicator is on this stream");
  guard_ = guard;
}

absl::Status StreamWait::All() {
  if (guard_ == nullptr) return Wait(stream_);
  FACET_RETURN_IF_ERROR(Record(end_, stream_));
  return Until(end_);
}

absl::Status StreamWait::Until(Event event) {
  if (guard_ == nullptr) return Wait(event);
  absl::Status device;
  const absl::Status status = guard_->Await([&] {
    const absl::StatusOr<bool> passed = Passed(event);
    device = passed.status();
    return !passed.ok() || *passed;
  });
  FACET_RETURN_IF_ERROR(device);
  if (status.ok()) return status;
  FACET_RETURN_IF_ERROR(RunOut());
  return status;
}

// So that nothing arrives any more in memory of the host that somebody waited to read.
absl::Status StreamWait::RunOut() {
  using Clock = std::chrono::steady_clock;
  FACET_RETURN_IF_ERROR(Record(end_, stream_));
  for (const Clock::time_point begin = Clock::now();;) {
    FACET_ASSIGN_OR_RETURN(const bool passed, Passed(end_));
    if (passed) return absl::OkStatus();
    FACET_CHECK(Clock::now() < begin + kRunOut, "the device hangs in what has been aborted");
    std::this_thread::sleep_for(kNap);
  }
}

}  // namespace facet::cuda
