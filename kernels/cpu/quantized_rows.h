#ifndef FACET_KERNELS_CPU_QUANTIZED_ROWS_H_
#define FACET_KERNELS_CPU_QUANTIZED_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"

namespace facet {

// Consecutive rows of activations as products read them: cut into tiles of up to kTileRows rows,
// with memory for their quantised form, which whoever has written the rows fills tile by tile.
// Memory is kept from one set of rows to the next. One thread changes it.
class QuantizedRows {
 public:
  // Cuts `rows` rows of `columns` floats from `x` on.
  void Cut(const float* x, int rows, int64_t columns);
  void Clear() { Cut(nullptr, 0, 0); }

  bool Are(const float* x, int rows, int64_t columns) const {
    return x_ == x && rows_ == rows && columns_ == columns;
  }
  bool Overlap(const float* begin, const float* end) const {
    return begin < x_ + rows_ * columns_ && x_ < end;
  }

  std::span<const ActivationTile> tiles() const { return tiles_; }
  // The first row of a tile, and behind the last tile the number of rows.
  int first_row(int tile) const { return first_rows_[static_cast<size_t>(tile)]; }

 private:
  void Reserve();
  void Place(int tile);

  const float* x_ = nullptr;
  int rows_ = 0;
  int64_t columns_ = 0;
  std::vector<ActivationTile> tiles_;
  std::vector<int> first_rows_ = {0};
  // The quantised rows, tile after tile.
  std::vector<int8_t> q_;
  std::vector<float> scale_;
  std::vector<float> scaled_sum_;
  std::vector<int32_t> offset_sums_[3];
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_QUANTIZED_ROWS_H_
