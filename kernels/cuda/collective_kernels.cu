#include "kernels/cuda/kernels.h"
#include "kernels/cuda/language.cuh"

namespace facet::cuda {
namespace {

constexpr int kThreads = 128;

// The sums that wait are in registers: every index into them is known when this is compiled.
__global__ void TreeRootsKernel(TreeSum args) {
  const int64_t element = int64_t{BlockIndex().x} * kThreads + ThreadIndex().x;
  if (element >= args.elements) return;
  float waiting[kTreeLevelsMax];
  int depth = 0;
  for (int i = 0; i < args.count; ++i) {
    float sum = args.roots[i * args.stride + element];
    int merges = args.merges[i];
#pragma unroll
    for (int level = kTreeLevelsMax - 1; level >= 0; --level) {
      if (level != depth - 1 || merges == 0) continue;
      sum = AddRn(waiting[level], sum);
      --merges;
      --depth;
    }
#pragma unroll
    for (int level = 0; level < kTreeLevelsMax; ++level) {
      if (level == depth) waiting[level] = sum;
    }
    ++depth;
  }
  args.out[element] = waiting[0];
}

}  // namespace

int SumTreeRoots(Stream stream, const TreeSum& args) {
  if (args.elements == 0) return 0;
  const LaunchShape shape{
      {static_cast<unsigned>((args.elements + kThreads - 1) / kThreads)}, {kThreads}, 0};
  return Launch(stream, shape, TreeRootsKernel, args);
}

}  // namespace facet::cuda
