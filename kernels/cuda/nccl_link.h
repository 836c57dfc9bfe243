#ifndef FACET_KERNELS_CUDA_NCCL_LINK_H_
#define FACET_KERNELS_CUDA_NCCL_LINK_H_

#include <chrono>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/nccl_api.h"

namespace facet::cuda {

struct NcclOptions {
  // Device memory for the roots of all ranks in an all-reduce, which goes in pieces if it needs
  // more.
  int64_t buffer_bytes = int64_t{32} << 20;
  // From this many bytes of one rank's roots on, a rank of more than two adds only its slice of the
  // elements: fewer bytes for one launch more (kernels/collectives/README.md).
  int64_t slice_bytes_min = int64_t{1} << 20;
  // For forming a group, in which NCCL connects every pair of ranks.
  std::chrono::milliseconds attach_timeout{30'000};
  // How long a wait looks again and again before it naps between two looks, and for how long.
  std::chrono::microseconds spin{1'000};
  std::chrono::microseconds nap{50};
  // Looks at NCCL between two looks at the host's communicator.
  int looks_at_device = 16;
  // A peer that is gone may have ended its part; this rank's ends within this time then, or never.
  std::chrono::milliseconds gone_grace{100};
};

// One rank's place in NCCL, from its forming to its end. All waiting is here: until a deadline, and
// with an eye on NCCL's asynchronous errors and on the group, which says over the host's
// communicator that it has failed. A function that fails leaves the link to be aborted. Used by the
// rank's thread.
class NcclLink {
 public:
  using Clock = std::chrono::steady_clock;

  // Borrows all; nobody else uses `host` meanwhile.
  NcclLink(Nccl* nccl, Communicator* host, Stream stream, const NcclOptions& options);
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;
  ~NcclLink();  // aborts

  absl::Status Form(const NcclId& id, Clock::time_point deadline);

  // Transfers between Begin() and End() go together, after what is on the stream; when End()
  // returns they are on it. A peer receives as many floats as it is sent; 0 of them are no
  // transfer.
  void Begin();
  void Send(const float* from, int64_t count, int peer);
  void Receive(float* to, int64_t count, int peer);
  void AllGather(const float* from, int64_t count, float* to);
  absl::Status End(Clock::time_point deadline);

  // Until all that is on the stream is done.
  absl::Status Finish(Clock::time_point deadline);

  // Ends what is under way here; peers are not told. Nothing but the destructor may follow.
  void Abort();

 private:
  template <typename Done>
  absl::Status Await(Clock::time_point deadline, const Done& done);
  void Note(NcclResult result);
  absl::Status StatusOf(NcclResult result);
  // Whether NCCL has done what it was last told to, or its error.
  absl::StatusOr<bool> Settled();

  Nccl* const nccl_;
  Communicator* const host_;
  const Stream stream_;
  const NcclOptions options_;
  NcclComm comm_ = nullptr;
  Event passed_ = nullptr;
  NcclResult noted_ = NcclResult::kSuccess;  // the first error since Begin()
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_LINK_H_
