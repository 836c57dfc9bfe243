#ifndef FACET_KERNELS_REFERENCE_REFERENCE_MATRIX_H_
#define FACET_KERNELS_REFERENCE_REFERENCE_MATRIX_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/host/matrix_source.h"

namespace facet {

// Rows of activations, as floats and, block by block of 32, as integers.
struct QuantizedRows {
  int64_t columns = 0;
  std::vector<float> x;           // [rows, columns]
  std::vector<float> rounded;     // [rows, columns]: to bfloat16
  std::vector<int8_t> q;          // [rows, columns]
  std::vector<float> scale;       // [rows, columns / 32]
  std::vector<float> scaled_sum;  // [rows, columns / 32]: scale x float(sum of q)
};
QuantizedRows QuantizeRows(const float* x, int rows, int64_t columns);

// The rows of a matrix as they lie in the file, or dequantised where the type has no packed form.
class ReferenceMatrix final : public Matrix {
 public:
  static absl::StatusOr<std::unique_ptr<ReferenceMatrix>> Load(const MatrixSource& source,
                                                               const LeafCut* cut);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(bytes_.size()); }
  int root_count() const override { return leaves_.roots(); }
  bool integer_product() const { return HasIntegerProduct(type_); }

  // out[i] = element i of the row, as floats.
  void Dequantize(int64_t row, float* out) const;
  // out[r x out_stride] = row `row` times row r of `x`, over the leaves of root `root`.
  void MultiplyRow(int64_t row, const QuantizedRows& x, int x_rows, int root, float* out,
                   int64_t out_stride) const;

 private:
  const std::byte* Row(int64_t row) const { return bytes_.data() + row * row_bytes_; }

  TensorType type_ = TensorType::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t row_bytes_ = 0;
  std::vector<std::byte> bytes_;
  LeafRoots leaves_;
};

}  // namespace facet

#endif  // FACET_KERNELS_REFERENCE_REFERENCE_MATRIX_H_
