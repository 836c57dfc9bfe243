#ifndef FACET_KERNELS_CPU_QUANTIZED_ROWS_H_
#define FACET_KERNELS_CPU_QUANTIZED_ROWS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {

// Consecutive rows of activations as products read them: cut into tiles of up to kTileRows rows,
// with memory for their quantised form, which whoever knows the rows fills tile by tile or block by
// block, and for that rounded to bfloat16. Memory is kept from one set of rows to the next. One
// thread changes it.
class QuantizedRows {
 public:
  // Cuts `rows` rows of `columns` floats from `x` on; integer products need a multiple of 32.
  void Cut(const float* x, int rows, int64_t columns);
  void Clear() { Cut(nullptr, 0, 0); }

  bool empty() const { return rows_ == 0; }
  bool Are(const float* x, int rows, int64_t columns) const {
    return x_ == x && rows_ == rows && columns_ == columns;
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
  AlignedBuffer memory_;  // of the following, tile after tile
  int8_t* q_ = nullptr;
  float *scale_ = nullptr, *scaled_sum_ = nullptr;
  int32_t* offset_sums_[3] = {};
  int32_t* pairs_ = nullptr;
};

// An array that only products with integer weights read, as long as it lives
// (Device::AllocateInputs()). Where `rows` are not empty they are what has been written to it, and
// nothing reads its floats.
struct ProductInputs {
  const float* begin = nullptr;
  const float* end = nullptr;
  QuantizedRows rows;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_QUANTIZED_ROWS_H_
