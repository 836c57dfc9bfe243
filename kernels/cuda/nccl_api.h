#ifndef FACET_KERNELS_CUDA_NCCL_API_H_
#define FACET_KERNELS_CUDA_NCCL_API_H_

// What the `nccl` communicator asks of NCCL, call by call. nccl_dlopen.cc gives it over
// libnccl.so.2, which is opened when it is first wanted; tests/cuda_emulator gives it in host
// memory, with faults. Nothing else knows NCCL's header. ncclCommDestroy is not here: it may wait
// for peers, so nobody calls it.
//
// Threads: as NCCL's own: one thread at a time uses a communicator, and the current device
// (driver.h's UseDevice) must be its own.

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/driver.h"

struct ncclComm;

namespace facet::cuda {

using NcclComm = ::ncclComm*;  // ncclComm_t

// ncclResult_t.
enum class NcclResult : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7
};

// ncclUniqueId: where ranks find each other. Whoever knows it can join.
using NcclId = std::array<std::byte, 128>;

class Nccl {
 public:
  virtual ~Nccl() = default;

  // ncclGetVersion: 22809 is 2.28.9.
  virtual int version() = 0;
  virtual NcclResult GetUniqueId(NcclId* id) = 0;
  // ncclCommInitRankConfig with blocking = 0: *comm is there at once, to be asked with
  // GetAsyncError() until it is no longer in progress, or to be aborted.
  virtual NcclResult InitRank(NcclComm* comm, int world, const NcclId& id, int rank) = 0;
  // ncclCommGetAsyncError.
  virtual NcclResult GetAsyncError(NcclComm comm, NcclResult* error) = 0;
  // Frees the communicator and ends what is under way, on streams, too; waits for no peer, but for
  // graphs that have captured its transfers to be destroyed.
  virtual NcclResult Abort(NcclComm comm) = 0;

  // Between GroupStart() and GroupEnd(), whose calls go to the stream together, or to its capture,
  // once GetAsyncError() is no longer in progress. Of floats.
  virtual NcclResult GroupStart() = 0;
  virtual NcclResult GroupEnd() = 0;
  virtual NcclResult Send(const float* from, size_t count, int peer, NcclComm comm,
                          Stream stream) = 0;
  virtual NcclResult Receive(float* to, size_t count, int peer, NcclComm comm, Stream stream) = 0;
  // to[r * count ...] = rank r's `from`, which may be its own place there.
  virtual NcclResult AllGather(const float* from, float* to, size_t count, NcclComm comm,
                               Stream stream) = 0;

  // "unhandled cuda error (run with NCCL_DEBUG=INFO for details)", and what NCCL says of the last
  // error; `comm` may be null.
  virtual std::string Describe(NcclResult result, NcclComm comm) = 0;
};

// Lives as long as the process. FailedPrecondition says what is missing: the library, a function
// in it, a version that is new enough, or the header when this was built.
absl::StatusOr<Nccl*> OpenNccl();

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NCCL_API_H_
