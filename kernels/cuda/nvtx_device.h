#ifndef FACET_KERNELS_CUDA_NVTX_DEVICE_H_
#define FACET_KERNELS_CUDA_NVTX_DEVICE_H_

#include <memory>

#include "kernels/device.h"

namespace facet::cuda {

// `device`, with every step and operation a range of the NVTX domain "facet", for Nsight Systems
// and the like. A range is what the host does: launches, and waits where the operation has one.
// Where no such tool has started this process, `device` itself is returned, so that nothing is
// added to it.
std::unique_ptr<Device> WithNvtxRanges(std::unique_ptr<Device> device);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_NVTX_DEVICE_H_
