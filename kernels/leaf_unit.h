#ifndef FACET_KERNELS_LEAF_UNIT_H_
#define FACET_KERNELS_LEAF_UNIT_H_

// What a product takes together along a row: where the leaves of a matrix may begin (README.md).

#include <cstdint>

#include "checkpoint/block_formats.h"

namespace facet {

// Activations are quantised in blocks of this many columns.
inline constexpr int kBlockColumns = 32;

// True for the types whose products work on quantised activations. BF16's work on activations
// rounded to it, the others' on floats, after DequantizeRow where they are neither F32 nor F16.
constexpr bool HasIntegerProduct(TensorType type) {
  switch (type) {
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
    case TensorType::kQ5_0:
    case TensorType::kQ5_1:
    case TensorType::kQ8_0:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
    case TensorType::kQ6_K:
      return true;
    default:
      return false;
  }
}

// The leaves of a matrix begin at multiples of so many columns: a block of activations, a pair of
// bfloat16 numbers, or 1.
constexpr int64_t LeafUnit(TensorType type) {
  if (HasIntegerProduct(type)) return kBlockColumns;
  return type == TensorType::kBF16 ? 2 : 1;
}

}  // namespace facet

#endif  // FACET_KERNELS_LEAF_UNIT_H_
