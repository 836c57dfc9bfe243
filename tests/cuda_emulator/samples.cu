#include "tests/cuda_emulator/samples.h"

#include "kernels/cuda/language.cuh"

namespace facet::cuda_samples {
namespace {

using namespace facet::cuda;  // NOLINT: the language

__device__ int32_t WarpSum(int32_t value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += ShuffleXor(value, mask);
  return value;
}

__global__ void BlockSumsKernel(const int32_t* values, int count, int32_t* out) {
  SharedMemory memory;
  Shared<int32_t> of_warp = memory.Array<int32_t>(kWarpSize);
  const int thread = ThreadIndex().x;
  const int block = BlockIndex().x;
  const int warps = BlockSize().x / kWarpSize;
  int32_t sum = 0;
  for (int i = thread; i < count; i += BlockSize().x) sum += values[block * count + i];
  sum = WarpSum(sum);
  if (thread % kWarpSize == 0) of_warp[thread / kWarpSize] = sum;
  Barrier();
  if (thread >= kWarpSize) return;
  int32_t part = 0;
  if (thread < warps) part = of_warp[thread];
  part = WarpSum(part);
  if (thread == 0) out[block] = part;
}

}  // namespace

int BlockSums(Stream stream, const int32_t* values, int count, int blocks, int threads,
              int32_t* out) {
  const LaunchShape shape = {.grid = {static_cast<unsigned>(blocks)},
                             .block = {static_cast<unsigned>(threads)},
                             .shared_bytes = kWarpSize * sizeof(int32_t)};
  return Launch(stream, shape, BlockSumsKernel, values, count, out);
}

}  // namespace facet::cuda_samples
