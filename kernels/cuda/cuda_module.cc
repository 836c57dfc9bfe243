#include "kernels/cuda/cuda_module.h"

#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/nccl_api.h"

namespace {

absl::StatusOr<int> NcclVersion() {
  FACET_ASSIGN_OR_RETURN(facet::cuda::Nccl* const nccl, facet::cuda::OpenNccl());
  return nccl->version();
}

}  // namespace

extern "C" [[gnu::visibility("default")]] const facet::cuda::CudaModule* facet_cuda_module() {
  static constexpr facet::cuda::CudaModule kModule = {FACET_CUDA_ABI, &facet::cuda::DeviceCount,
                                                      &facet::cuda::MakeCudaDevice, &NcclVersion};
  return &kModule;
}
