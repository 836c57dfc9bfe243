#include "kernels/cuda/library_products.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cuda/launch_queue.h"

namespace facet::cuda {
namespace {

// Rows of activations are made up to the next of these.
constexpr std::array kBuckets = {16, 32, 64, 128, 192, 256, 320, 384, 448, 512};
static_assert(kBuckets.back() == LibraryProducts::kRowsMax);
// More rows than this are the library's, of weights that have to be rounded first, and of those
// that need not be.
constexpr int kRowsOfRounded = kReplayedRowsMax;
constexpr int kRowsInPlace = kVectorRowsMax;
// Elements to which rows and roots are aligned: 16 bytes of bf16.
constexpr int64_t kColumnUnit = kLtAlignment / 2;
constexpr int64_t kRowUnit = 64;  // of a panel, where it may be larger

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int BucketFor(int rows) { return *std::lower_bound(kBuckets.begin(), kBuckets.end(), rows); }

int64_t ColumnsOf(const CudaMatrix& matrix, int root) {
  return matrix.root_start(root + 1) - matrix.root_start(root);
}

// Whether every root has columns, and begins where the library can begin to read.
bool RootsSuit(const CudaMatrix& matrix) {
  for (int root = 0; root < matrix.root_count(); ++root) {
    const bool aligned = matrix.root_start(root) % kColumnUnit == 0;
    if (!aligned || ColumnsOf(matrix, root) == 0) return false;
  }
  return true;
}

// Whether the library can read the weights where they lie.
bool InPlace(const CudaMatrix& matrix) {
  return matrix.type() == TensorType::kBF16 && matrix.columns() % kColumnUnit == 0;
}

int RowsFrom(const CudaMatrix& matrix) {
  return (InPlace(matrix) ? kRowsInPlace : kRowsOfRounded) + 1;
}

}  // namespace

absl::Status CublasLtStatus(int status) {
  switch (status) {
    case 0:
      return absl::OkStatus();
    case 1:
      return Internal("cuBLASLt: CUBLAS_STATUS_NOT_INITIALIZED (1)");
    case 3:
      return ResourceExhausted("cuBLASLt: CUBLAS_STATUS_ALLOC_FAILED (3)");
    case 7:
      return Internal("cuBLASLt: CUBLAS_STATUS_INVALID_VALUE (7)");
    case 8:
      return Internal("cuBLASLt: CUBLAS_STATUS_ARCH_MISMATCH (8)");
    case 13:
      return Internal("cuBLASLt: CUBLAS_STATUS_EXECUTION_FAILED (13)");
    case 14:
      return Internal("cuBLASLt: CUBLAS_STATUS_INTERNAL_ERROR (14)");
    case 15:
      return Internal("cuBLASLt: CUBLAS_STATUS_NOT_SUPPORTED (15)");
    default:
      return Internal("cuBLASLt: status {}", status);
  }
}

absl::Status LibraryProducts::Init(const Options& options) {
  options_ = options;
  FACET_ASSIGN_OR_RETURN(CublasLt* const library, OpenCublasLt());
  FACET_ASSIGN_OR_RETURN(handle_, library->MakeHandle());
  FACET_ASSIGN_OR_RETURN(void* const panel,
                         context_.memory->Allocate("work spaces", options.panel_bytes));
  panel_ = static_cast<uint16_t*>(panel);
  FACET_ASSIGN_OR_RETURN(library_workspace_,
                         context_.memory->Allocate("work spaces", options.library_bytes));
  return absl::OkStatus();
}

// Panels of one size but for the last: as many rows as there is room for, of results twice (a
// gate's and what it is multiplied with), and of rounded weights. The same for all types, so that a
// gate and what it is multiplied with have the same.
int64_t LibraryProducts::PanelRows(const CudaMatrix& matrix, int root) const {
  const int64_t row_bytes = 2 * RoundUp(ColumnsOf(matrix, root), kColumnUnit);
  const int64_t most =
      std::min(context_.workspace_size() / 2 / kRowsMax / kColumnUnit * kColumnUnit,
               options_.panel_bytes / row_bytes);
  if (most < 1) return 0;
  const int64_t panels = (matrix.rows() + most - 1) / most;
  const int64_t even = (matrix.rows() + panels - 1) / panels;
  return std::min(most, RoundUp(even, kRowUnit));
}

LtShape LibraryProducts::ShapeOf(const CudaMatrix& matrix, const Panel& panel, int x_rows) const {
  LtShape shape;
  shape.outputs = panel.rows;
  shape.rows = BucketFor(x_rows);
  shape.columns = RoundUp(ColumnsOf(matrix, panel.root), kColumnUnit);
  shape.weight_stride = InPlace(matrix) ? matrix.columns() : shape.columns;
  shape.x_stride = RoundUp(matrix.columns(), kColumnUnit);
  shape.out_stride = RoundUp(panel.rows, kColumnUnit);
  return shape;
}

absl::Status LibraryProducts::PlanPanel(const CudaMatrix& matrix, const Panel& panel) {
  for (const int rows : kBuckets) {
    if (rows < RowsFrom(matrix)) continue;
    std::unique_ptr<LtPlan>& plan = plans_[ShapeOf(matrix, panel, rows)];
    if (plan != nullptr) continue;
    FACET_ASSIGN_OR_RETURN(plan,
                           handle_->Plan(ShapeOf(matrix, panel, rows), options_.library_bytes));
  }
  return absl::OkStatus();
}

absl::Status LibraryProducts::Prepare(const CudaMatrix& matrix) {
  if (!RootsSuit(matrix)) return absl::OkStatus();
  for (int root = 0; root < matrix.root_count(); ++root) {
    const int64_t step = PanelRows(matrix, root);
    if (step == 0) {
      return ResourceExhausted("a row of {} columns exceeds the work space for weights in bf16",
                               ColumnsOf(matrix, root));
    }
    FACET_RETURN_IF_ERROR(PlanPanel(matrix, {root, 0, std::min(step, matrix.rows())}));
    const int64_t rest = matrix.rows() % step;
    if (rest > 0) FACET_RETURN_IF_ERROR(PlanPanel(matrix, {root, 0, rest}));
  }
  const int64_t columns = RoundUp(matrix.columns(), kColumnUnit);
  if (columns <= x_columns_) return absl::OkStatus();
  FACET_RETURN_IF_ERROR(Wait(context_.stream));
  if (x_ != nullptr) context_.memory->Release(std::exchange(x_, nullptr));
  FACET_ASSIGN_OR_RETURN(
      void* const x,
      context_.memory->Allocate("activations", kRowsMax * columns * int64_t{sizeof(uint16_t)}));
  x_ = static_cast<uint16_t*>(x);
  x_columns_ = columns;
  return absl::OkStatus();
}

bool LibraryProducts::Takes(const CudaMatrix& matrix, int rows) const {
  return rows >= RowsFrom(matrix) && RootsSuit(matrix);
}

void LibraryProducts::Round(const float* x, int rows, int64_t columns) {
  Bf16Rows args;
  args.type = TensorType::kF32;
  args.from = reinterpret_cast<const uint8_t*>(x);
  args.row_bytes = columns * static_cast<int64_t>(sizeof(float));
  args.rows = rows;
  args.columns = columns;
  args.out_rows = BucketFor(rows);
  args.stride = RoundUp(columns, kColumnUnit);
  args.out = x_;
  context_.launches->Put<&RoundToBf16>("rounded activations", args);
}

void LibraryProducts::MultiplyPanel(const CudaMatrix& matrix, const Panel& panel, int x_rows,
                                    float* results) {
  const LtShape shape = ShapeOf(matrix, panel, x_rows);
  const int64_t begin = matrix.root_start(panel.root);
  const uint8_t* const rows = matrix.data() + panel.first * matrix.row_bytes();
  LibraryProduct product;
  product.weights = panel_;
  if (InPlace(matrix)) {
    product.weights = reinterpret_cast<const uint16_t*>(rows) + begin;
  } else {
    Bf16Rows args;
    args.type = matrix.type();
    args.from = rows;
    args.row_bytes = matrix.row_bytes();
    args.rows = args.out_rows = static_cast<int>(panel.rows);
    args.begin = begin;
    args.columns = ColumnsOf(matrix, panel.root);
    args.stride = shape.weight_stride;
    args.out = panel_;
    context_.launches->Put<&RoundToBf16>("rounded weights", args);
  }
  const auto plan = plans_.find(shape);
  FACET_CHECK(plan != plans_.end(), "no plan for {} x {} x {}", shape.outputs, shape.rows,
              shape.columns);
  product.plan = plan->second.get();
  product.x = x_ + begin;
  product.out = results;
  product.workspace = library_workspace_;
  context_.launches->Put<&RunLibraryProduct>("a product by cuBLASLt", product);
}

void LibraryProducts::Multiply(const CudaMatrix& matrix, const CudaMatrix* up, Gate gate, int rows,
                               const Target& target) {
  float* const results = context_.workspace_floats();
  float* const up_results = results + context_.workspace_size() / 2 / kColumnUnit * kColumnUnit;
  for (int root = 0; root < matrix.root_count(); ++root) {
    const int64_t step = PanelRows(matrix, root);
    for (int64_t first = 0; first < matrix.rows(); first += step) {
      const Panel panel = {root, first, std::min(step, matrix.rows() - first)};
      MultiplyPanel(matrix, panel, rows, results);
      if (up != nullptr) MultiplyPanel(*up, panel, rows, up_results);
      StoredProducts stored;
      stored.values = results;
      stored.up = up == nullptr ? nullptr : up_results;
      stored.gate = gate;
      stored.rows = rows;
      stored.width = static_cast<int>(panel.rows);
      stored.stride = RoundUp(panel.rows, kColumnUnit);
      stored.out = target.out + root * target.root_stride + first;
      stored.out_stride = target.out_stride;
      context_.launches->Put<&StoreProducts>("a library's products", stored);
    }
  }
}

}  // namespace facet::cuda
