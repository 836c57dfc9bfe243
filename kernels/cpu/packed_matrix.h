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

// Where the panels of a packed matrix lie: not always one behind the other, because a matrix may be
// some columns of an image (packed_images.h).
struct PanelStream {
  const std::byte* data = nullptr;  // aligned to 64 bytes, as all panels are
  int64_t bytes = 0;                // of a panel that are the matrix's
  int64_t stride = 0;               // from one panel to the next
};

// A matrix in packed panels.
class PackedMatrix final : public Matrix {
 public:
  // Packs on all threads of the pool; reads every byte of the source's rows once.
  static absl::StatusOr<std::unique_ptr<PackedMatrix>> Pack(const MatrixSource& source,
                                                            const LeafCut* cut, ThreadPool* pool);
  // A matrix that is packed already, in memory that outlives it; `low` is looked at in split
  // formats only.
  PackedMatrix(PackedFormat format, int64_t rows, int64_t columns, LeafRoots leaves,
               PanelStream panels, PanelStream low)
      : format_(format),
        rows_(rows),
        columns_(columns),
        leaves_(std::move(leaves)),
        panels_(panels),
        low_(low) {}

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t packed_bytes() const override { return panels() * (panels_.bytes + low_.bytes); }
  int root_count() const override { return leaves_.roots(); }

  PackedFormat format() const { return format_; }
  bool integer_product() const { return !LayoutOf(format_).is_float; }
  bool bfloat_product() const { return format_ == PackedFormat::kBF16; }
  const LeafRoots& leaves() const { return leaves_; }
  int64_t panels() const { return (rows_ + kPanelColumns - 1) / kPanelColumns; }
  // Of a split format: without its low bits.
  int64_t panel_bytes() const { return panels_.bytes; }
  const std::byte* panel(int64_t index) const { return panels_.data + index * panels_.stride; }
  // The low bits of a panel of a split format.
  int64_t low_bytes() const { return low_.bytes; }
  const std::byte* low(int64_t index) const { return low_.data + index * low_.stride; }
  // How many of a panel's columns are the matrix's.
  int panel_columns(int64_t index) const {
    return static_cast<int>(std::min<int64_t>(kPanelColumns, rows_ - index * kPanelColumns));
  }

 private:
  PackedFormat format_ = PackedFormat::kF32;
  int64_t rows_ = 0;
  int64_t columns_ = 0;
  LeafRoots leaves_;
  PanelStream panels_;
  PanelStream low_;
  AlignedBuffer own_;  // what Pack() wrote
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACKED_MATRIX_H_
