#include "base/status.h"
#include "kernels/cuda/nccl_api.h"

namespace facet::cuda {

absl::StatusOr<Nccl*> OpenNccl() {
  return FailedPrecondition("this build had no nccl.h, so it cannot use NCCL");
}

}  // namespace facet::cuda
