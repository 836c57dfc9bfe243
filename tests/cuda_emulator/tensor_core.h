#ifndef FACET_TESTS_CUDA_EMULATOR_TENSOR_CORE_H_
#define FACET_TESTS_CUDA_EMULATOR_TENSOR_CORE_H_

// One lane's share of an mma, from the fragments of all lanes. Layouts: PTX ISA, "Matrix Fragments
// for mma.m16n8k16 with floating point type" and "for mma.m16n8k32".
//
// Floats: products and sums are made in double, in ascending k, then d, and rounded once. Hardware
// adds with fewer bits than double has and in an order of its own: how it rounds only a GPU can
// tell.

#include <cstdint>

#include "tests/cuda_emulator/machine.h"

namespace facet::cuda_emulator {

enum class HalfKind { kF16, kBf16 };

// Lanes bring a[4] and b[2], in that order.
void MmaHalf(HalfKind kind, const Machine::Operands& operands, int lane, float (&d)[4]);
void MmaS8(const Machine::Operands& operands, int lane, int32_t (&d)[4]);

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_TENSOR_CORE_H_
