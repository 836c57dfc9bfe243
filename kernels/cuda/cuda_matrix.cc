#include "kernels/cuda/cuda_matrix.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/row_layout.h"

namespace facet::cuda {
namespace {

// Rows travel to the device in pieces of about so many bytes.
constexpr int64_t kPieceBytes = int64_t{16} << 20;

// What the kernels read the type as.
TensorType DeviceType(TensorType type) {
  const bool direct = HasIntegerProduct(type) || type == TensorType::kF16 ||
                      type == TensorType::kBF16 || type == TensorType::kF32;
  return direct ? type : TensorType::kF32;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaMatrix>> CudaMatrix::Load(const MatrixSource& source,
                                                             const LeafCut* cut,
                                                             DeviceMemory* memory, Stream stream) {
  FACET_RETURN_IF_ERROR(CheckSource(source, cut));
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  if (source.rows > kMax || source.columns > kMax) {
    return InvalidArgument("{}: {} x {} elements", source.name, source.rows, source.columns);
  }
  auto matrix = std::make_unique<CudaMatrix>();
  matrix->type_ = DeviceType(source.type);
  matrix->rows_ = source.rows;
  matrix->columns_ = source.columns;
  matrix->row_bytes_ = DeviceRowBytes(matrix->type_, source.columns);
  matrix->leaves_ = MakeLeafRoots(source.columns, cut);
  if (matrix->leaf_count() > kRootLeavesMax) {
    return InvalidArgument("{}: {} leaves, more than {}", source.name, matrix->leaf_count(),
                           kRootLeavesMax);
  }
  FACET_ASSIGN_OR_RETURN(void* const data, memory->Allocate("weights", matrix->packed_bytes()));
  matrix->data_ = static_cast<uint8_t*>(data);
  FACET_RETURN_IF_ERROR(matrix->CopyRows(source, stream));
  FACET_RETURN_IF_ERROR(matrix->CopyLeaves(memory, stream));
  return matrix;
}

absl::Status CudaMatrix::CopyRows(const MatrixSource& source, Stream stream) {
  const int64_t step = std::clamp<int64_t>(kPieceBytes / row_bytes_, 1, rows_);
  std::vector<std::byte> piece(static_cast<size_t>(step * row_bytes_));
  for (int64_t first = 0; first < rows_; first += step) {
    const int64_t count = std::min(step, rows_ - first);
    for (int64_t i = 0; i < count; ++i) {
      FACET_RETURN_IF_ERROR(CheckScales(source, first + i));
      std::byte* const to = piece.data() + i * row_bytes_;
      const std::byte* const from = SourceRow(source, first + i);
      if (type_ == source.type) {
        LayOutRow(type_, from, columns_, to);
      } else {
        DequantizeRow(source.type, from, columns_, reinterpret_cast<float*>(to));
      }
    }
    FACET_RETURN_IF_ERROR(
        CopyToDevice(data_ + first * row_bytes_, piece.data(), count * row_bytes_, stream));
    FACET_RETURN_IF_ERROR(Wait(stream));
  }
  return absl::OkStatus();
}

absl::Status CudaMatrix::CopyLeaves(DeviceMemory* memory, Stream stream) {
  std::vector<int32_t> values(leaves_.starts.begin(), leaves_.starts.end());
  const size_t starts = values.size();
  values.insert(values.end(), leaves_.root_begin.begin(), leaves_.root_begin.end());
  for (int root = 0; root <= root_count(); ++root) {
    values.push_back(static_cast<int32_t>(root_start(root)));
  }
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(int32_t));
  FACET_ASSIGN_OR_RETURN(void* const data, memory->Allocate("weights", bytes));
  leaf_starts_ = static_cast<int32_t*>(data);
  root_begin_ = leaf_starts_ + starts;
  root_starts_ = root_begin_ + leaves_.root_begin.size();
  FACET_RETURN_IF_ERROR(CopyToDevice(data, values.data(), bytes, stream));
  return Wait(stream);
}

}  // namespace facet::cuda
