#ifndef FACET_KERNELS_CPU_PACKED_MATRIX_H_
#define FACET_KERNELS_CPU_PACKED_MATRIX_H_

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/thread_pool.h"
#include "kernels/cpu/packed_format.h"
#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"
#include "kernels/host/matrix_source.h"

namespace facet {

// A matrix in packed panels.
class PackedMatrix final : public Matrix {
 public:
  // Packs on all threads of the pool; reads every byte of the source's rows once.
  static absl::StatusOr<std::unique_ptr<PackedMatrix>> Pack(const MatrixSource& source,
                                                            const LeafCut* cut, ThreadPool* pool);

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t packed_bytes() const override { return static_cast<int64_t>(bytes_.size()); }
  int root_count() const override { return leaves_.roots(); }

  PackedFormat format() const { return format_; }
  bool integer_product() const { return !LayoutOf(format_).is_float; }
  const LeafRoots& leaves() const { return leaves_; }
  int64_t panels() const { return (rows_ + kPanelColumns - 1) / kPanelColumns; }
  // Of a split format: without its low bits.
  int64_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int64_t index) const { return bytes_.data() + index * panel_bytes_; }
  // The low bits of a panel of a split format.
  int64_t low_bytes() const { return low_bytes_; }
  const std::byte* low(int64_t index) const {
    return bytes_.data() + panels() * panel_bytes_ + index * low_bytes_;
  }
  // How many of a panel's columns are the matrix's.
  int panel_columns(int64_t index) const {
    return static_cast<int>(std::min<int64_t>(kPanelColumns, rows_ - index * kPanelColumns));
  }

 private:
  PackedFormat format_ = PackedFormat::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  int64_t panel_bytes_ = 0;
  int64_t low_bytes_ = 0;
  AlignedBuffer bytes_;
  LeafRoots leaves_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACKED_MATRIX_H_
