#ifndef FACET_KERNELS_CUDA_CUDA_PRODUCT_H_
#define FACET_KERNELS_CUDA_CUDA_PRODUCT_H_

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/library_products.h"

namespace facet::cuda {

// The products of Device. Activations go through in groups of rows that fit the memory for their
// quantised form and for leaves; the groups never show in the result.
//
// Where arithmetic is fast, a product is one of three by its rows of activations: VectorProducts of
// a few, the library's of many, and the canonical kernels between them. None adds leaves.
class CudaProduct {
 public:
  explicit CudaProduct(const CudaContext& context) : context_(context) {}

  // From here on the arithmetic is CudaDeviceOptions' `fast`. Before the first Prepare().
  absl::Status MakeFast(const LibraryProducts::Options& options);

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

  // Whether a group of rows goes to the library.
  bool OfLibrary(const CudaMatrix& matrix, int rows) const {
    return library_ != nullptr && library_->Takes(matrix, rows);
  }
  void Quantize(const float* x, int rows, int64_t columns);
  // The forms of a group of rows that products with the parts take.
  void PutActivations(std::span<const CudaMatrix* const> parts, const float* x, int rows);
  // What a matrix's columns are cut into for products: leaves, or roots where arithmetic is fast.
  struct ColumnParts {
    const int32_t* starts = nullptr;  // on the device: [count + 1]
    int count = 1;
    bool roots = false;  // every part is a root: nothing is left to add
  };
  ColumnParts PartsOf(const CudaMatrix& matrix) const;
  // Products of a group of rows, by part; quantised already, if the matrix needs it.
  void Multiply(const CudaMatrix& matrix, const CudaMatrix* up, Gate gate, const float* x, int rows,
                const Target& target);
  // Rows of a group that needs so many floats of work space each.
  int GroupRows(int64_t floats) const;

  const CudaContext& context_;
  std::unique_ptr<LibraryProducts> library_;  // of fast arithmetic; else null
  QuantizedActivations quantized_;
  int64_t columns_ = 0;  // that the quantised activations have room for
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_PRODUCT_H_
