#ifndef FACET_KERNELS_COLLECTIVES_COMMUNICATOR_H_
#define FACET_KERNELS_COLLECTIVES_COMMUNICATOR_H_

// How the ranks of one group exchange data inside a step. Every rank makes the same calls in the
// same order. A call that does not match its peers' (other operation, step, or size), that
// outlives its deadline, or that follows Abort() anywhere, fails on every rank; after a failure
// the communicator stays failed and is thrown away with its epoch.
// One thread of a rank calls everything but Abort(), which any thread may call.

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/call.h"
#include "kernels/sum_tree.h"

namespace facet {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int world() const = 0;
  // Whether AllReduceSum() and AllGather() take addresses of the device that it was made for rather
  // than of host memory. All else is in host memory. Then their work comes behind what the device
  // has been asked for, and they may return before it is done, and OK before it is known whether it
  // can be. That comes to light later: in what waits for the device and returns a status, and in
  // every later call of the communicator. What the device computed from it is not to be used before
  // one of them was OK. All ranks wait for their devices, and begin steps, between the same calls.
  virtual bool on_device() const { return false; }

  // The step that the following calls belong to; peers in another step fail instead of mixing.
  virtual void SetStep(uint64_t step) = 0;
  // How long the following calls may take, each.
  virtual void SetTimeout(std::chrono::milliseconds timeout) = 0;

  // out = the tree's sum. `roots`: this rank's roots side by side, root_count(rank) x elements.
  // Bits do not depend on the world size. REQUIRES: tree.world() == world().
  virtual absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                                    float* out) = 0;

  // out = the ranks' floats side by side; rank r contributes counts[r].
  virtual absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                                 float* out) = 0;

  // out[r] = the bytes of rank r, which may differ in length and need not be known beforehand.
  virtual absl::Status AllGatherBytes(std::span<const std::byte> mine,
                                      std::vector<std::vector<std::byte>>* out) = 0;

  // On rank 0 sends *message, elsewhere receives it. The one call that may wait long: followers
  // sleep here between steps.
  virtual absl::Status Broadcast(std::vector<std::byte>* message) = 0;

  // Until what the calls before have put on the device is done; others are when they return.
  virtual absl::Status Finish() { return absl::OkStatus(); }

  // Returns when all ranks are in a call about the same.
  virtual absl::Status Meet(const CallSubject& subject) = 0;
  absl::Status Barrier() { return Meet({Operation::kBarrier}); }

  // Makes this and every later call fail on all ranks, promptly.
  virtual void Abort() = 0;

  // The next two are for who waits for peers by other means, such as a communicator of a device
  // that has this one beside it, while no call is under way.
  // OK, or why the group has failed as far as this rank can tell without waiting. Unavailable may
  // mean that a peer is gone, which may have been its right if nobody awaits anything of it.
  virtual absl::Status Look() = 0;
  // Abort() for a reason of one's own; returns why the group has failed, this or an earlier one.
  virtual absl::Status Fail(const absl::Status& reason) = 0;

  // Seconds spent in calls since the last look: waiting for peers, and moving or adding data.
  struct Times {
    double wait_s = 0;
    double work_s = 0;
  };
  virtual Times TakeTimes() = 0;
};

}  // namespace facet

#endif  // FACET_KERNELS_COLLECTIVES_COMMUNICATOR_H_
