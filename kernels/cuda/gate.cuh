#ifndef FACET_KERNELS_CUDA_GATE_CUH_
#define FACET_KERNELS_CUDA_GATE_CUH_

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/math.cuh"

namespace facet::cuda {

// act(gate) * up.  REQUIRES: kind != kNone.
__device__ __forceinline__ float Gated(Gate kind, float gate, float up) {
  return MulRn(kind == Gate::kSilu ? SiluOf(gate) : GeluTanhOf(gate), up);
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_GATE_CUH_
