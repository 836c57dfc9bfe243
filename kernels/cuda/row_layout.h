#ifndef FACET_KERNELS_CUDA_ROW_LAYOUT_H_
#define FACET_KERNELS_CUDA_ROW_LAYOUT_H_

// How a row of a matrix lies in device memory. A GGUF block of 18, 22, 34 or 210 bytes (Q4_0, Q5_0,
// Q8_0, Q6_K) is a scale of two bytes and a multiple of four others, so in the file every other
// block is aligned to two bytes only. On the device such blocks lie in pairs: both scales, then the
// rest of the first, then the rest of the second. Whatever is four bytes wide is then aligned to
// four. A row with an odd number of blocks ends in zeros where the last pair's second block would
// be. All other types lie as in the file.

#include <cstddef>
#include <cstdint>

#include "checkpoint/block_formats.h"

namespace facet::cuda {

// REQUIRES: a whole number of blocks.
int64_t DeviceRowBytes(TensorType type, int64_t columns);

// `from` is a row as in the file. What only fills the last pair up is not written.
void LayOutRow(TensorType type, const std::byte* from, int64_t columns, std::byte* to);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_ROW_LAYOUT_H_
