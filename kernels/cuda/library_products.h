#ifndef FACET_KERNELS_CUDA_LIBRARY_PRODUCTS_H_
#define FACET_KERNELS_CUDA_LIBRARY_PRODUCTS_H_

#include <cstdint>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "kernels/cuda/cublaslt_api.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/cuda_matrix.h"
#include "kernels/cuda/kernels.h"

namespace facet::cuda {

// Products by cuBLASLt, for --arithmetic=fast: a panel of the matrix's rows is rounded to bf16 (one
// whose rows are bf16 is read where it lies), multiplied with all rows of activations, and its
// results are brought to their places. Rows of activations are made up with zeros to a few numbers,
// so that all shapes are known when a matrix is loaded; each has its algorithm from then on.
class LibraryProducts {
 public:
  // Rows of activations that are multiplied at a time.
  static constexpr int kRowsMax = 512;

  struct Options {
    int64_t panel_bytes = 0;    // device memory for a panel
    int64_t library_bytes = 0;  // and for the library's own work space
  };

  explicit LibraryProducts(const CudaContext& context) : context_(context) {}

  // FailedPrecondition where there is no library. Until then nothing else may be called.
  absl::Status Init(const Options& options);
  // Plans all products with this matrix, and makes room for their activations.
  absl::Status Prepare(const CudaMatrix& matrix);

  // Whether a product with so many rows of activations is the library's: where enough of them share
  // what rounding the weights costs.
  bool Takes(const CudaMatrix& matrix, int rows) const;
  // Rounds rows of activations, for the products with them that follow.
  void Round(const float* x, int rows, int64_t columns);
  // out[root * root_stride + r * out_stride + i]; with a gate, act(matrix x) * (up x).
  // REQUIRES: Takes() both, Round() of as many rows and columns.
  struct Target {
    float* out = nullptr;
    int64_t out_stride = 0;
    int64_t root_stride = 0;
  };
  void Multiply(const CudaMatrix& matrix, const CudaMatrix* up, Gate gate, int rows,
                const Target& target);

 private:
  // A part of a matrix, with results of its own.
  struct Panel {
    int root = 0;
    int64_t first = 0;  // row of the matrix
    int64_t rows = 0;
  };

  int64_t PanelRows(const CudaMatrix& matrix, int root) const;
  LtShape ShapeOf(const CudaMatrix& matrix, const Panel& panel, int x_rows) const;
  absl::Status PlanPanel(const CudaMatrix& matrix, const Panel& panel);
  void MultiplyPanel(const CudaMatrix& matrix, const Panel& panel, int x_rows, float* results);

  const CudaContext& context_;
  Options options_;
  std::unique_ptr<LtHandle> handle_;
  std::map<LtShape, std::unique_ptr<LtPlan>> plans_;
  uint16_t* panel_ = nullptr;
  void* library_workspace_ = nullptr;
  uint16_t* x_ = nullptr;  // [kRowsMax, the widest matrix's columns]
  int64_t x_columns_ = 0;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_LIBRARY_PRODUCTS_H_
