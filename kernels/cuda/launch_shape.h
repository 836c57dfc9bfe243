#ifndef FACET_KERNELS_CUDA_LAUNCH_SHAPE_H_
#define FACET_KERNELS_CUDA_LAUNCH_SHAPE_H_

// What kernels and the host code that launches them say to each other: plain values, the same for
// nvcc, for the host compiler and under the emulator.

#include <cstdint>

struct CUstream_st;

namespace facet::cuda {

using Stream = ::CUstream_st*;  // cudaStream_t, as in driver.h

inline constexpr int kWarpSize = 32;

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

struct LaunchShape {
  Dim3 grid;
  Dim3 block;                 // at most 1024 threads
  uint32_t shared_bytes = 0;  // per block; at most 163 KiB, what an sm_80 has
};

// What one instruction loads and stores: aligned to their size.
struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};
struct alignas(8) F32x2 {
  float x, y;
};
struct alignas(16) F32x4 {
  float x, y, z, w;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_LAUNCH_SHAPE_H_
