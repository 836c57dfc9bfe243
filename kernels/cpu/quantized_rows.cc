#include "kernels/cpu/quantized_rows.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

constexpr int64_t kLine = 64;

int64_t RoundUp(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Pairs of a row, in whole lines.
int64_t PairStride(int64_t columns) { return RoundUp((columns + 1) / 2 * 4) / 4; }

}  // namespace

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

// Aligned, so that the 192 bytes of a block of six rows are three lines.
void QuantizedRows::Reserve() {
  const int64_t bytes = RoundUp(rows_ * columns_);
  const int64_t words = RoundUp(rows_ * (columns_ / kBlockColumns) * int64_t{sizeof(float)});
  const int64_t pairs = rows_ * PairStride(columns_) * int64_t{sizeof(int32_t)};
  const auto size = static_cast<size_t>(bytes + 5 * words + pairs);
  if (memory_.size() < size) {
    absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(size);
    FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
    memory_ = *std::move(larger);
  }
  std::byte* next = memory_.data();
  q_ = reinterpret_cast<int8_t*>(next);
  next += bytes;
  for (float** array : {&scale_, &scaled_sum_}) {
    *array = reinterpret_cast<float*>(next);
    next += words;
  }
  for (int32_t*& sums : offset_sums_) {
    sums = reinterpret_cast<int32_t*>(next);
    next += words;
  }
  pairs_ = reinterpret_cast<int32_t*>(next);
  for (int i = 0; i < static_cast<int>(tiles_.size()); ++i) Place(i);
}

void QuantizedRows::Place(int index) {
  ActivationTile& tile = tiles_[static_cast<size_t>(index)];
  const int64_t first = first_row(index);
  const int64_t block = first * (columns_ / kBlockColumns);
  tile.x = x_ + first * columns_;
  tile.q = q_ + first * columns_;
  tile.scale = scale_ + block;
  tile.scaled_sum = scaled_sum_ + block;
  tile.pair_stride = PairStride(columns_);
  tile.pairs = pairs_ + first * tile.pair_stride;
  for (size_t k = 0; k < 3; ++k) tile.offset_sum[k] = offset_sums_[k] + block;
}

}  // namespace facet
