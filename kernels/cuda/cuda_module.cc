#include "kernels/cuda/cuda_module.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/driver.h"

extern "C" [[gnu::visibility("default")]] const facet::cuda::CudaModule* facet_cuda_module() {
  static constexpr facet::cuda::CudaModule kModule = {FACET_CUDA_ABI, &facet::cuda::DeviceCount,
                                                      &facet::cuda::MakeCudaDevice};
  return &kModule;
}
