#include "kernels/cpu/quantized_rows.h"

#include "kernels/host/matrix_source.h"

namespace facet {

// As few tiles as possible, as equal as possible.
void QuantizedRows::Cut(const float* x, int rows, int64_t columns) {
  x_ = x;
  rows_ = rows;
  columns_ = columns;
  tiles_.clear();
  first_rows_.assign(1, 0);
  const int count = (rows + kTileRows - 1) / kTileRows;
  for (int i = 0; i < count; ++i) {
    ActivationTile tile;
    tile.rows = rows / count + (i < rows % count ? 1 : 0);
    tile.columns = columns;
    tiles_.push_back(tile);
    first_rows_.push_back(first_rows_.back() + tile.rows);
  }
  Reserve();
}

void QuantizedRows::Reserve() {
  const size_t size = static_cast<size_t>(rows_ * columns_);
  if (q_.size() < size) {
    q_.resize(size);
    scale_.resize(size / kBlockColumns);
    scaled_sum_.resize(size / kBlockColumns);
    for (std::vector<int32_t>& sums : offset_sums_) sums.resize(size / kBlockColumns);
  }
  for (int i = 0; i < static_cast<int>(tiles_.size()); ++i) Place(i);
}

void QuantizedRows::Place(int index) {
  ActivationTile& tile = tiles_[static_cast<size_t>(index)];
  const int64_t first = first_row(index);
  const int64_t block = first * (columns_ / kBlockColumns);
  tile.x = x_ + first * columns_;
  tile.q = q_.data() + first * columns_;
  tile.scale = scale_.data() + block;
  tile.scaled_sum = scaled_sum_.data() + block;
  for (size_t k = 0; k < 3; ++k) tile.offset_sum[k] = offset_sums_[k].data() + block;
}

}  // namespace facet
