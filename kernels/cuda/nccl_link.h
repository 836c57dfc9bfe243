#ifndef FACET_KERNELS_CUDA_NCCL_LINK_H_
#define FACET_KERNELS_CUDA_NCCL_LINK_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>

#include "absl/status/status.h"
#include "kernels/collectives/communicator.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/nccl_api.h"
#include "kernels/cuda/transfers.h"

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
  // How long a wait looks again and again, as long as a decoding step may take, before it naps
  // between two looks, and for how long.
  std::chrono::microseconds spin{10'000};
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
  NcclLink(Nccl* nccl, Communicator* host, const NcclOptions& options);
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;
  ~NcclLink();  // aborts

  // For every wait from now on.
  void SetTimeout(std::chrono::milliseconds timeout) { timeout_ = timeout; }

  // Takes this rank's place in the group of `id`, as all ranks do at the same time. The first call,
  // and once. Internal: what NCCL says, at once or later. DeadlineExceeded: the timeout, counted
  // from here. Any other: why the group has failed, as the host's communicator tells it.
  absl::Status Form(const NcclId& id);

  // Puts transfers on the stream, which go together: they are on it when it returns, and wait there
  // for what was before them and for the peers. Errors as Form()'s; some may be on the stream then.
  absl::Status Put(std::span<const Transfer> transfers, Stream stream);
  // What the last Put() returned.
  const absl::Status& error() const { return error_; }

  // Until done() is true, which is asked again and again. Errors as Form()'s.
  absl::Status Await(const std::function<bool()>& done);

  // Ends what is under way here, on the stream, too; peers are not told. REQUIRES: all graphs that
  // have captured transfers of it have been destroyed. Nothing but the destructor may follow.
  void Abort();

 private:
  // `done` after NCCL has been asked and had no error; it is told whether NCCL is in progress.
  template <typename Done>
  absl::Status Poll(const Done& done);
  NcclResult Issue(const Transfer& transfer, Stream stream);
  absl::Status PutTogether(std::span<const Transfer> transfers, Stream stream);
  absl::Status StatusOf(NcclResult result);

  Nccl* const nccl_;
  Communicator* const host_;
  const NcclOptions options_;
  std::chrono::milliseconds timeout_;
  NcclComm comm_ = nullptr;
  absl::Status error_;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_LINK_H_
