#include "kernels/cuda/cuda_module.h"

#include "base/status.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/driver.h"
#include "kernels/cuda/nccl_api.h"
#include "kernels/cuda/nvtx_device.h"

namespace {

absl::StatusOr<std::unique_ptr<facet::Device>> MakeDevice(
    const facet::cuda::CudaDeviceOptions& options) {
  FACET_ASSIGN_OR_RETURN(std::unique_ptr<facet::Device> device,
                         facet::cuda::MakeCudaDevice(options));
  return facet::cuda::WithNvtxRanges(std::move(device));
}

absl::StatusOr<std::string> BusId(int device) {
  FACET_ASSIGN_OR_RETURN(const facet::cuda::DeviceProperties properties,
                         facet::cuda::Properties(device));
  return properties.bus_id;
}

absl::StatusOr<int> NcclVersion() {
  FACET_ASSIGN_OR_RETURN(facet::cuda::Nccl* const nccl, facet::cuda::OpenNccl());
  return nccl->version();
}

absl::StatusOr<int64_t> CublasLtVersion() {
  FACET_ASSIGN_OR_RETURN(facet::cuda::CublasLt* const library, facet::cuda::OpenCublasLt());
  return library->version();
}

}  // namespace

extern "C" [[gnu::visibility("default")]] const facet::cuda::CudaModule* facet_cuda_module() {
  static constexpr facet::cuda::CudaModule kModule = {FACET_CUDA_ABI, &facet::cuda::DeviceCount,
                                                      &MakeDevice,    &BusId,
                                                      &NcclVersion,   &CublasLtVersion};
  return &kModule;
}
