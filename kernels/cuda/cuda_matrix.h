#ifndef FACET_KERNELS_CUDA_CUDA_MATRIX_H_
#define FACET_KERNELS_CUDA_CUDA_MATRIX_H_

#include <cstdint>
#include <memory>

#include "kernels/cuda/device_memory.h"
#include "kernels/cuda/driver.h"
#include "kernels/device.h"
#include "kernels/host/matrix_source.h"

namespace facet::cuda {

// A matrix in device memory, its rows (row_layout.h) one after the other; types without a kernel of
// their own are widened to F32. The device's memory owns the bytes.
class CudaMatrix final : public Matrix {
 public:
  static absl::StatusOr<std::unique_ptr<CudaMatrix>> Load(const MatrixSource& source,
                                                          const LeafCut* cut, DeviceMemory* memory,
                                                          Stream stream);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t packed_bytes() const override { return rows_ * row_bytes_; }
  int root_count() const override { return leaves_.roots(); }

  TensorType type() const { return type_; }
  bool integer_product() const { return HasIntegerProduct(type_); }
  int64_t row_bytes() const { return row_bytes_; }
  const uint8_t* data() const { return data_; }
  int leaf_count() const { return static_cast<int>(leaves_.starts.size()) - 1; }
  // On the device: LeafRoots' starts and root_begin.
  const int32_t* leaf_starts() const { return leaf_starts_; }
  const int32_t* root_begin() const { return root_begin_; }
  // On the device: the column where each root begins, and `columns` at the end.
  const int32_t* root_starts() const { return root_starts_; }
  // The same on the host.
  int64_t root_start(int root) const {
    return leaves_.starts[static_cast<size_t>(leaves_.root_begin[static_cast<size_t>(root)])];
  }

 private:
  absl::Status CopyRows(const MatrixSource& source, Stream stream);
  absl::Status CopyLeaves(DeviceMemory* memory, Stream stream);

  TensorType type_ = TensorType::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t row_bytes_ = 0;
  LeafRoots leaves_;
  uint8_t* data_ = nullptr;
  const int32_t* leaf_starts_ = nullptr;
  const int32_t* root_begin_ = nullptr;
  const int32_t* root_starts_ = nullptr;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_MATRIX_H_
