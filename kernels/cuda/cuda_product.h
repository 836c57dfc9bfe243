#ifndef FACET_KERNELS_CUDA_CUDA_PRODUCT_H_
#define FACET_KERNELS_CUDA_CUDA_PRODUCT_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/kernels.h"

namespace facet::cuda {

// The products of Device. Activations go through in groups of rows that fit the memory for their
// quantised form and for leaves; the groups never show in the result.
class CudaProduct {
 public:
  explicit CudaProduct(const CudaContext& context) : context_(context) {}

  // Makes room for products with this matrix. Called as matrices are loaded.
  absl::Status Prepare(const CudaMatrix& matrix);

  // As Device's. `x` and `out` are on the device.
  void Product(std::span<const CudaMatrix* const> parts, const float* x, int rows, float* out);
  void GatedProduct(Gate gate, const CudaMatrix& matrix, const CudaMatrix& up, const float* x,
                    int rows, float* out);
  void ProductRoots(const CudaMatrix& matrix, const float* x, int rows, float* roots);

 private:
  // Where a group's results go.
  struct Target {
    float* out = nullptr;
    int64_t out_stride = 0;
    int64_t leaf_stride = 0;
  };

  void Quantize(const float* x, int rows, int64_t columns);
  // Leaf products of a group of rows; quantised already, if the matrix needs it.
  void Multiply(const CudaMatrix& matrix, const CudaMatrix* up, Gate gate, const float* x, int rows,
                const Target& target);
  // Rows of a group that needs so many floats of work space each.
  int GroupRows(int64_t floats) const;

  const CudaContext& context_;
  QuantizedActivations quantized_;
  int64_t columns_ = 0;  // that the quantised activations have room for
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_PRODUCT_H_
