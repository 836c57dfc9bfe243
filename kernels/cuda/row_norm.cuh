#ifndef FACET_KERNELS_CUDA_ROW_NORM_CUH_
#define FACET_KERNELS_CUDA_ROW_NORM_CUH_

#include "kernels/cuda/math.cuh"

namespace facet::cuda {

// 1 / sqrt(mean of squares + epsilon) of a row, the same for every thread of the block; the block
// calls it, with a barrier before it calls it again. Half a warp reads the row: sixteen accumulators
// are what the canonical order has.
__device__ __forceinline__ float InverseNorm(const float* x, int width, float epsilon) {
  FACET_SHARED(float, inverse, 1);
  const int thread = ThreadIndex().x;
  if (thread < kWarpSize) {
    float a = 0;
    if (thread < 16) {
#pragma unroll 4
      for (int i = thread; i < width; i += 16) a = FmaRn(x[i], x[i], a);
    }
    const float mean = DivRn(TreeOfLanes(a), static_cast<float>(width));
    if (thread == 0) inverse[0] = DivRn(1.0f, SqrtRn(AddRn(mean, epsilon)));
  }
  Barrier();
  return inverse[0];
}

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_ROW_NORM_CUH_
