#ifndef FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
#define FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collectives/communicator.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/nccl_link.h"

namespace facet::cuda {

// Where a communicator works: a device's stream, behind whose work it puts its own, and a buffer in
// its memory.
struct NcclPlace {
  int device = 0;
  Stream stream = nullptr;
  float* buffer = nullptr;  // none is needed by a group of one
  int64_t buffer_floats = 0;
};

// The collectives between the memories of CUDA devices: what the `nccl` backend does. NCCL knows
// nothing of steps, so every call on the device begins with a Meet() of the host's communicator,
// which fails on all ranks unless all are in a call of the same operation, step, size and layout;
// only then does it go to NCCL. Data of AllGatherBytes() and Broadcast() is in host memory and goes
// over that communicator alone. A call returns when the device has done it, or it fails: by its
// deadline, by an error that NCCL reports, or by what the host's communicator says of the group.
// Then this rank's NCCL communicator is aborted, and its peers learn of it from the host's.
// A group of one copies on the device, and does not wait for it.
class NcclCommunicator final : public Communicator {
 public:
  // Borrows what is at `place`.
  NcclCommunicator(std::unique_ptr<Communicator> host, const NcclPlace& place,
                   const NcclOptions& options);

  // Finds the other ranks and connects to them, once, before any call; all or none succeed. Takes
  // the reason why this rank cannot as well, so that peers need not wait to learn it.
  // REQUIRES: world() > 1, and with NCCL room for 2 world() floats in the buffer.
  absl::Status Form(const absl::StatusOr<Nccl*>& nccl);

  int rank() const override { return host_->rank(); }
  int world() const override { return host_->world(); }
  bool on_device() const override { return true; }
  void SetStep(uint64_t step) override;
  void SetTimeout(std::chrono::milliseconds timeout) override;
  absl::Status AllReduceSum(const SumTree& tree, const float* roots, int64_t elements,
                            float* out) override;
  absl::Status AllGather(std::span<const float> mine, std::span<const int64_t> counts,
                         float* out) override;
  absl::Status AllGatherBytes(std::span<const std::byte> mine,
                              std::vector<std::vector<std::byte>>* out) override;
  absl::Status Broadcast(std::vector<std::byte>* message) override;
  absl::Status Meet(const CallSubject& subject) override { return host_->Meet(subject); }
  void Abort() override { host_->Abort(); }
  absl::Status Look() override { return host_->Look(); }
  absl::Status Fail(const absl::Status& reason) override { return host_->Fail(reason); }
  Times TakeTimes() override;

 private:
  using Clock = NcclLink::Clock;

  // One all-reduce.
  struct Reduction {
    const SumTree& tree;
    const float* roots;
    int64_t elements;
    int64_t piece;  // how many elements go at a time
    float* out;
  };

  // Runs `body`, which puts a call's work on the stream, and waits for it.
  template <typename Body>
  absl::Status Call(const CallSubject& subject, const Body& body);
  absl::Status Connect();
  absl::Status FailWith(const CallSubject& subject, const absl::Status& status);

  absl::Status ReduceEverywhere(const Reduction& r);
  absl::Status ReduceInSlices(const Reduction& r);
  absl::Status ExchangeSlices(const Reduction& r, int64_t begin, int64_t length);
  // out = the tree over the roots of all ranks, which lie side by side in the buffer.
  absl::Status AddRoots(const SumTree& tree, int64_t elements, float* out);
  // Brings counts[r] floats of every rank r side by side to `out`; `mine` may be there already.
  absl::Status Gather(const float* mine, std::span<const int64_t> counts, float* out);
  // `count` floats, unless they are there already.
  absl::Status Copy(const float* from, int64_t count, float* to);

  const std::unique_ptr<Communicator> host_;
  const NcclPlace place_;
  const NcclOptions options_;
  std::optional<NcclLink> link_;  // of more than one rank

  uint64_t step_ = 0;
  std::chrono::milliseconds timeout_{10'000};
  Clock::time_point deadline_;  // of the call under way
  double work_s_ = 0;
  std::vector<int64_t> counts_;  // kept for its capacity
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_COMMUNICATOR_H_
