#ifndef FACET_TESTS_CUDA_EMULATOR_PLANTED_H_
#define FACET_TESTS_CUDA_EMULATOR_PLANTED_H_

// Small kernels with one fault each, which they have or not as asked.

#include <cstdint>
#include <span>

#include "tests/cuda_emulator/findings.h"

namespace facet::cuda::samples {

inline constexpr int kPlantedThreads = 64;
inline constexpr int kPlantedWords = 1024;  // of input, output and shared memory

struct PlantedKernel {
  const char* name;
  cuda_emulator::Fault fault;
  cuda_emulator::Fault in_some_orders;  // what it may show as first instead
  void (*kernel)(bool right, const uint32_t* in, uint32_t* out);
};

std::span<const PlantedKernel> PlantedKernels();
std::span<const PlantedKernel> PlantedAtomics();  // with faults around atomics
// Two blocks, which do the same. Returns what Launch() returned. `in` and `out` have kPlantedWords,
// aligned to 16 bytes.
int RunPlanted(const PlantedKernel& kernel, bool right, const uint32_t* in, uint32_t* out);
// A kernel that does nothing, in any shape.
int RunShape(unsigned grid, unsigned block, uint32_t shared_bytes);
// A kernel with arrays of kFixedBytes together, beside so many dynamic ones.
inline constexpr uint32_t kFixedBytes = 40 * 1024;
int RunFixed(uint32_t shared_bytes);

}  // namespace facet::cuda::samples

#endif  // FACET_TESTS_CUDA_EMULATOR_PLANTED_H_
