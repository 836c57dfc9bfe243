#ifndef FACET_TESTS_KERNELS_FAST_CASE_H_
#define FACET_TESTS_KERNELS_FAST_CASE_H_

// What the tests of fast products share.

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "tests/kernels/test_data.h"

namespace facet {

// To bf16: to nearest, ties to even.
inline float Rounded(float a) {
  const uint32_t bits = std::bit_cast<uint32_t>(a);
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

inline std::vector<float> RunRoots(Device& device, const Matrix& matrix, Floats x, int rows) {
  const Floats out = *device.AllocateFloats(matrix.root_count() * rows * matrix.rows());
  device.ProductRoots(matrix, x, rows, out);
  return Download(device, out);
}

// A matrix as it is in the file and as numbers, and activations.
struct Case {
  Case(TensorType type, int64_t rows, int64_t columns, int x_rows, Random& random)
      : matrix(MakeMatrix(type, rows, columns, 0.1f, random)),
        x(MakeActivations(x_rows, columns, random)) {
    for (int64_t row = 0; row < rows; ++row) weights.push_back(matrix.DequantizedRow(row));
  }

  std::span<const float> activations(int64_t row) const {
    return std::span(x).subspan(static_cast<size_t>(row * matrix.columns),
                                static_cast<size_t>(matrix.columns));
  }

  TestMatrix matrix;
  std::vector<float> x;
  std::vector<std::vector<float>> weights;
};

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_FAST_CASE_H_
