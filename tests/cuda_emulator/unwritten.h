#ifndef FACET_TESTS_CUDA_EMULATOR_UNWRITTEN_H_
#define FACET_TESTS_CUDA_EMULATOR_UNWRITTEN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

namespace facet::cuda_emulator {

// The first byte of `output` that `run` leaves as it was, or -1: runs it twice, over two patterns
// that differ in every byte. REQUIRES: `run` does the same each time.
int64_t FirstUnwritten(std::span<std::byte> output, const std::function<void()>& run);

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_UNWRITTEN_H_
