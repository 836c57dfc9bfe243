#ifndef FACET_TESTS_CUDA_EMULATOR_NCCL_HOST_H_
#define FACET_TESTS_CUDA_EMULATOR_NCCL_HOST_H_

// kernels/cuda/nccl_api.h between the threads of this process, each with an emulated device of its
// own. As NCCL's, a communicator that does not block is in progress for a while after each call,
// and only then are transfers on the stream, or in its capture; a transfer waits there for its
// peer, for ever if the peer has aborted, and no host needs to look on; an abort ends the rank's
// own, and no graph may have captured them then, because NCCL would wait for it to be destroyed;
// nobody checks what ranks agree in, but transfers of unequal lengths, which NCCL would not notice,
// end the process, as do addresses outside device memory.

#include <atomic>

#include "kernels/cuda/nccl_api.h"

namespace facet::cuda_emulator {

// What befalls one rank.
struct NcclFaults {
  cuda::NcclResult init = cuda::NcclResult::kSuccess;  // how its initialisation ends
  // So many groups of transfers work (-1: all), replayed ones counted. The next one ends with
  // `error`, or if that is kSuccess, never.
  int groups = -1;
  cuda::NcclResult error = cuda::NcclResult::kSuccess;
  // The group that would never end does once this is true.
  const std::atomic<bool>* until = nullptr;
  bool capture = true;  // false: transfers are refused while their stream is captured
};
// Of the communicators that `rank` makes from now on.
void SetNcclFaults(int rank, const NcclFaults& faults);
// Whether OpenNccl() finds a library from now on.
void SetNcclFound(bool found);
// Groups that have met a fault of their rank, ever.
int NcclFaultsMet();
// Communicators that nobody has aborted.
int LiveNcclComms();

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_NCCL_HOST_H_
