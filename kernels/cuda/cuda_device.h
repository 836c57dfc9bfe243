#ifndef FACET_KERNELS_CUDA_CUDA_DEVICE_H_
#define FACET_KERNELS_CUDA_CUDA_DEVICE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/cuda/cuda_module.h"
#include "kernels/device.h"

namespace facet::cuda {

// A device that computes on a CUDA GPU, in the reference's order of operations; with options.fast
// but for products. Its Floats are device memory. FailedPrecondition where there is no such GPU or
// it is too old, ResourceExhausted where its memory is.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(const CudaDeviceOptions& options);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_DEVICE_H_
