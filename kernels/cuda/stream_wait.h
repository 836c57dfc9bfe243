#ifndef FACET_KERNELS_CUDA_STREAM_WAIT_H_
#define FACET_KERNELS_CUDA_STREAM_WAIT_H_

// How the host waits for a stream. Exchanges that other devices must take part in may be on it, and
// end only if these do; the communicator that they belong to guards them.

#include <chrono>
#include <functional>

#include "absl/status/status.h"
#include "kernels/cuda/driver.h"

namespace facet::cuda {

// Who put exchanges on a device's stream, and can end them. Called on the device's thread, by the
// device's LaunchQueue and by StreamWait.
class StreamGuard {
 public:
  virtual ~StreamGuard() = default;

  // Launches with exchanges among them are about to go to the stream. An error: they must not.
  virtual absl::Status Enter() = 0;
  // They are on it; not `whole` if an exchange did not get there.
  virtual void Entered(bool whole) = 0;
  // Returns when done() is true, or an error when the exchanges have been given up: the stream goes
  // on without them then. done() is asked again and again.
  virtual absl::Status Await(const std::function<bool()>& done) = 0;
  // Why the exchanges were given up, from then on; OK until then.
  virtual absl::Status failure() const = 0;
};

// One stream's. While somebody guards it every wait asks for the device's progress again and again,
// with the guard's patience; otherwise the driver waits. An error is the device's, or the guard's:
// then what would have been there is not, but nothing is on its way any more. Who has no error to
// return goes on if it is the guard's (broken()): the next call of the communicator says the same.
// Used by the device's thread.
class StreamWait {
 public:
  // Of a stream whose exchanges were given up: as long as it may take to run out. Then the process
  // ends: nothing but its end would free what hangs on the device.
  static constexpr std::chrono::seconds kRunOut{60};

  StreamWait() = default;
  StreamWait(const StreamWait&) = delete;
  StreamWait& operator=(const StreamWait&) = delete;
  ~StreamWait();

  // Borrows the stream.
  absl::Status Init(Stream stream);
  Stream stream() const { return stream_; }

  // nullptr: nobody. REQUIRES: one or the other is nobody.
  void SetGuard(StreamGuard* guard);
  bool guarded() const { return guard_ != nullptr; }
  bool broken() const { return guard_ != nullptr && !guard_->failure().ok(); }

  // Until all that is on the stream is done.
  absl::Status All();
  // Until the stream has passed the event.
  absl::Status Until(Event event);

 private:
  absl::Status RunOut();

  Stream stream_ = nullptr;
  Event end_ = nullptr;
  StreamGuard* guard_ = nullptr;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_STREAM_WAIT_H_
