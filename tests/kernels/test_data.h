#ifndef FACET_TESTS_KERNELS_TEST_DATA_H_
#define FACET_TESTS_KERNELS_TEST_DATA_H_

// Random matrices, activations and sequences for the kernels' tests.

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"

namespace facet {

using Random = std::mt19937_64;

// Every type that a file can have.
std::span<const TensorType> AllTensorTypes();

// A matrix as in a file, with random weights of every bit pattern that has a meaning.
struct TestMatrix {
  std::string name;
  TensorType type = TensorType::kF32;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<std::byte> bytes;
  std::vector<int32_t> row_order;

  MatrixSource source() const;
  std::vector<float> DequantizedRow(int64_t row) const;  // of the output row
};
// `scale` is about the size of a weight.
TestMatrix MakeMatrix(TensorType type, int64_t rows, int64_t columns, float scale, Random& random);
// Sets byte `offset` of block `block` of source row `row` and the next to the half-precision
// infinity.
void PoisonScale(TestMatrix* matrix, int64_t row, int64_t block, int offset);

// Normally distributed, with some rows' outliers and some blocks of zeros.
std::vector<float> MakeActivations(int64_t rows, int64_t columns, Random& random);
std::vector<float> MakeFloats(int64_t size, float scale, Random& random);

// `columns` cut into `leaves` at multiples of `unit`, as evenly as possible.
std::vector<int64_t> CutColumns(int64_t columns, int leaves, int64_t unit);

// A device's array with the given content, and back.
Floats Upload(Device& device, std::span<const float> values);
std::vector<float> Download(Device& device, Floats array);

// act(gate[i]) * up[i], through a gated product of which they are the weights.
std::vector<float> RunGate(Device& device, Activation activation, std::span<const float> gate,
                           std::span<const float> up);

}  // namespace facet

#endif  // FACET_TESTS_KERNELS_TEST_DATA_H_
