#ifndef FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_
#define FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_

// Small kernels that are right, for every word of the language.

#include <cstdint>

#include "kernels/cuda/launch_shape.h"

namespace facet::cuda_samples {

using cuda::Stream;

// out[b] = the sum of values[b count .. (b + 1) count): strided, then by shuffles and shared
// memory.
int BlockSums(Stream stream, const int32_t* values, int count, int blocks, int threads,
              int32_t* out);

}  // namespace facet::cuda_samples

#endif  // FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_
