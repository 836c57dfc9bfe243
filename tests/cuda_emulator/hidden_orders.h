#ifndef FACET_TESTS_CUDA_EMULATOR_HIDDEN_ORDERS_H_
#define FACET_TESTS_CUDA_EMULATOR_HIDDEN_ORDERS_H_

// Kernels whose faults are where no detector watches: in global memory, or in what they make of the
// order in which atomics come.

#include <cstdint>

namespace facet::cuda::samples {

inline constexpr int kOrderedThreads = 64;  // of a block
inline constexpr int kOrderedWords = 1024;  // of the output, one per thread; the input has one more

enum class HiddenOrder { kOfThreads, kOfBlocks, kOfTickets, kOfFloatSums, kOfClaims };
// Without its fault out[i] is in[i + 1]; with it, that is so in some orders of the threads or
// blocks only. REQUIRES: `between` is zeros, in[i + 1] is in[i] + 1.
int RunInHiddenOrder(HiddenOrder order, bool right, const uint32_t* in, uint32_t* between,
                     uint32_t* out);

}  // namespace facet::cuda::samples

#endif  // FACET_TESTS_CUDA_EMULATOR_HIDDEN_ORDERS_H_
