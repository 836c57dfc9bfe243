#ifndef FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_
#define FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_

// Small kernels that are right, for every word of the language.

#include <cstdint>

#include "kernels/cuda/launch_shape.h"

namespace facet::cuda::samples {

// out[b] = the sum of values[b count .. (b + 1) count): strided, then by shuffles and shared
// memory.
int BlockSums(Stream stream, const int32_t* values, int count, int blocks, int threads,
              int32_t* out);
// out[i] = 1 + the index of thread i of the grid in x, y, z order of blocks, then of threads; the
// grid and its blocks have the given sides.
int Indices(Stream stream, Dim3 grid, cuda::Dim3 block, uint32_t* out);

// What a warp's lanes get from each other: per word of the language and lane, [5][32].
//   0: Shuffle(values[lane], source)   1: ShuffleXor(values[lane], source)
//   2: ShuffleDown(values[lane], source)   3: as 0, of 8-byte floats   4: Ballot(values[lane] > 0)
int Lanes(Stream stream, const float* values, int source, double* out);

// out[b] = the sum of row b of values [blocks, count], copied to shared memory in the background
// by tiles of 128 floats, two at a time. REQUIRES: count is a multiple of 4.
int PipelinedSums(Stream stream, const float* values, int count, int blocks, float* out);

enum class ElementType { kF16, kBf16, kS8 };
// d = a b + d by one mma, every lane's fragment gathered element by element as the PTX ISA's tables
// of "Matrix Fragments for mma" have them.  a [16, k], b [k, 8], d [16, 8]; k is 16, or 32 for s8.
// Elements are 2-byte, or 1-byte for s8; d is float, or int32_t for s8.
int MmaByElements(Stream stream, ElementType type, const void* a, const void* b, void* d);
// The same for kBf16, a and b coming through shared memory and ldmatrix.
int MmaByLoadMatrix(Stream stream, const uint16_t* a, const uint16_t* b, float* d);

// out[b] += how many of the values are b modulo kBins.
inline constexpr int kBins = 16;
int Histogram(Stream stream, const uint32_t* values, int count, int blocks, int threads,
              uint32_t* out);

// What the threads of a block leave of zeros, each with values[thread]: in shared memory, to
// out[0 .. kAtomicResults), and in out[kAtomicResults ..], which is zeros at first.
//   0: AtomicAdd  1: AtomicMax  2: AtomicMin  3: AtomicOr  4: AtomicExchange, 5: the sum of what it
//   gave them  6: AtomicCompareExchange of 0
inline constexpr int kAtomicResults = 7;
template <typename T>  // int32_t or uint32_t
int Atomics(Stream stream, const T* values, int threads, T* out);

// out[i] = 0: FmaRn  1: MulRn  2: AddRn  3: DivRn  4: SqrtRn of x, y, z; then as floats 5:
// ToIntRn(x) 6: x through half precision  7: x through bfloat16  8: DotS8 of x's and y's bits
inline constexpr int kArithmeticResults = 9;
int Arithmetic(Stream stream, float x, float y, float z, float* out);

}  // namespace facet::cuda::samples

#endif  // FACET_TESTS_CUDA_EMULATOR_SAMPLES_H_
