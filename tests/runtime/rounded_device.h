#ifndef FACET_TESTS_RUNTIME_ROUNDED_DEVICE_H_
#define FACET_TESTS_RUNTIME_ROUNDED_DEVICE_H_

#include <cstdint>

#include "tests/runtime/in_process_group.h"

namespace facet::testing {

// What kernels/cuda/README.md ("Tolerances") says of factors that a library takes in bf16: each is
// off by at most this part of itself.
inline constexpr double kFactorError = 0x1p-8;

// On a reference device, some device whose products of more than 8 rows round their factors: each
// weight and each activation is off by a random part of itself, up to kFactorError, and activations
// are not quantised. Draws the weights' anew for each seed, the activations' for each product.
GroupOptions OnRounded(GroupOptions options, uint64_t seed);

}  // namespace facet::testing

#endif  // FACET_TESTS_RUNTIME_ROUNDED_DEVICE_H_
