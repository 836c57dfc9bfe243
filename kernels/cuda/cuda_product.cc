#include "kernels/cuda/cuda_product.h"

#include <algorithm>

#include "base/status.h"
#include "kernels/cuda/launch_queue.h"

namespace facet::cuda {
namespace {

// Rows of activations that are quantised at a time.
constexpr int kGroupRows = 512;
static_assert(kGroupRows == LibraryProducts::kRowsMax);

int64_t LeafFloats(const CudaMatrix& matrix) { return matrix.leaf_count() * matrix.rows(); }

}  // namespace

absl::Status CudaProduct::MakeFast(const LibraryProducts::Options& options) {
  library_ = std::make_unique<LibraryProducts>(context_);
  return library_->Init(options);
}

absl::Status CudaProduct::Prepare(const CudaMatrix& matrix) {
  if (library_ != nullptr) FACET_RETURN_IF_ERROR(library_->Prepare(matrix));
  if (LeafFloats(matrix) > context_.workspace_size()) {
    return ResourceExhausted("the leaves of one row, {} x {} floats, exceed the work space",
                             matrix.leaf_count(), matrix.rows());
  }
  if (!matrix.integer_product() || matrix.columns() <= columns_) return absl::OkStatus();
  FACET_RETURN_IF_ERROR(Wait(context_.stream));
  if (quantized_.q != nullptr) context_.memory->Release(quantized_.q);
  quantized_ = QuantizedActivations();
  columns_ = matrix.columns();
  const int64_t elements = kGroupRows * columns_;
  const int64_t scales = elements / kBlockColumns;
  const int64_t bytes = elements + 2 * scales * static_cast<int64_t>(sizeof(float));
  FACET_ASSIGN_OR_RETURN(void* const memory, context_.memory->Allocate("activations", bytes));
  quantized_.q = static_cast<int8_t*>(memory);
  quantized_.scales = reinterpret_cast<float*>(quantized_.q + elements);
  quantized_.scaled_sums = quantized_.scales + scales;
  return absl::OkStatus();
}

void CudaProduct::Quantize(const float* x, int rows, int64_t columns) {
  context_.launches->Put<&QuantizeRows>("quantised activations", x, rows, columns, quantized_);
}

CudaProduct::ColumnParts CudaProduct::PartsOf(const CudaMatrix& matrix) const {
  const int roots = matrix.root_count();
  if (library_ != nullptr) return {matrix.root_starts(), roots, true};
  return {matrix.leaf_starts(), matrix.leaf_count(), matrix.leaf_count() == roots};
}

void CudaProduct::Multiply(const CudaMatrix& matrix, const CudaMatrix* up, Gate gate,
                           const float* x, int rows, const Target& target) {
  LeafProducts args;
  args.type = matrix.type();
  args.weights = matrix.data();
  args.up = up == nullptr ? nullptr : up->data();
  args.gate = gate;
  args.rows = static_cast<int>(matrix.rows());
  args.columns = matrix.columns();
  args.row_bytes = matrix.row_bytes();
  const ColumnParts parts = PartsOf(matrix);
  args.leaf_starts = parts.starts;
  args.leaves = parts.count;
  args.x_rows = rows;
  args.x = x;
  args.quantized = quantized_;
  args.out = target.out;
  args.out_stride = target.out_stride;
  args.leaf_stride = target.leaf_stride;
  if (library_ != nullptr && rows <= kVectorRowsMax) {
    context_.launches->Put<&VectorProducts>("a product", args);
  } else if (matrix.integer_product()) {
    context_.launches->Put<&IntegerProducts>("a product", args);
  } else {
    context_.launches->Put<&FloatProducts>("a product", args);
  }
}

void CudaProduct::PutActivations(std::span<const CudaMatrix* const> parts, const float* x,
                                 int rows) {
  bool rounded = false;
  bool quantized = false;
  for (const CudaMatrix* part : parts) {
    const bool of_library = OfLibrary(*part, rows);
    rounded = rounded || of_library;
    quantized = quantized || (!of_library && part->integer_product());
  }
  if (rounded) library_->Round(x, rows, parts.front()->columns());
  if (quantized) Quantize(x, rows, parts.front()->columns());
}

void CudaProduct::Product(std::span<const CudaMatrix* const> parts, const float* x, int rows,
                          float* out) {
  const int64_t columns = parts.front()->columns();
  int64_t width = 0;
  for (const CudaMatrix* part : parts) width += part->rows();
  for (int first = 0; first < rows; first += kGroupRows) {
    const int count = std::min(kGroupRows, rows - first);
    const float* const group = x + first * columns;
    PutActivations(parts, group, count);
    float* to = out + first * width;
    for (const CudaMatrix* part : parts) {
      if (OfLibrary(*part, count)) {
        library_->Multiply(*part, nullptr, Gate::kNone, count, {to, width, 0});
      } else {
        Multiply(*part, nullptr, Gate::kNone, group, count, {to, width, 0});
      }
      to += part->rows();
    }
  }
}

void CudaProduct::GatedProduct(Gate gate, const CudaMatrix& matrix, const CudaMatrix& up,
                               const float* x, int rows, float* out) {
  const bool alike = matrix.type() == up.type();
  const int64_t width = matrix.rows();
  const int step = alike ? kGroupRows : GroupRows(width);
  for (int first = 0; first < rows; first += step) {
    const int count = std::min(step, rows - first);
    const float* const group = x + first * matrix.columns();
    float* const to = out + first * width;
    if (OfLibrary(matrix, count) && OfLibrary(up, count)) {
      library_->Round(group, count, matrix.columns());
      library_->Multiply(matrix, &up, gate, count, {to, width, 0});
      continue;
    }
    if (matrix.integer_product() || up.integer_product()) {
      Quantize(group, count, matrix.columns());
    }
    if (alike) {
      Multiply(matrix, &up, gate, group, count, {to, width, 0});
      continue;
    }
    float* const up_values = context_.workspace_floats();
    Multiply(matrix, nullptr, Gate::kNone, group, count, {to, width, 0});
    Multiply(up, nullptr, Gate::kNone, group, count, {up_values, width, 0});
    context_.launches->Put<&ApplyGate>("a gate", gate, up_values, count * width, to);
  }
}

int CudaProduct::GroupRows(int64_t floats) const {
  return static_cast<int>(std::min<int64_t>(kGroupRows, context_.workspace_size() / floats));
}

void CudaProduct::ProductRoots(const CudaMatrix& matrix, const float* x, int rows, float* roots) {
  const bool whole = PartsOf(matrix).roots;
  const int step = whole ? kGroupRows : GroupRows(LeafFloats(matrix));
  const int64_t width = matrix.rows();
  for (int first = 0; first < rows; first += step) {
    const int count = std::min(step, rows - first);
    const float* const group = x + first * matrix.columns();
    float* const to = roots + first * width;
    if (OfLibrary(matrix, count)) {
      library_->Round(group, count, matrix.columns());
      library_->Multiply(matrix, nullptr, Gate::kNone, count, {to, width, rows * width});
      continue;
    }
    if (matrix.integer_product()) Quantize(group, count, matrix.columns());
    if (whole) {
      Multiply(matrix, nullptr, Gate::kNone, group, count, {to, width, rows * width});
      continue;
    }
    float* const leaves = context_.workspace_floats();
    Multiply(matrix, nullptr, Gate::kNone, group, count, {leaves, width, count * width});
    context_.launches->Put<&SumLeaves>("a sum of leaves", leaves, count * width,
                                       matrix.root_begin(), matrix.root_count(), count * width,
                                       rows * width, to);
  }
}

}  // namespace facet::cuda
