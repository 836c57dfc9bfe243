#include "kernels/cpu/head_activations.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

// Below this no partial sum of a product can overflow, whatever the weights.
constexpr double kActivationsMax = 1e25;
// Covers the rounding of scales and factors in the spread of a bound.
constexpr double kSpreadMargin = 0x1p-8;

double Norm(const int8_t* q, int size) {
  int squares = 0;
  for (int k = 0; k < size; ++k) squares += q[k] * q[k];
  return std::sqrt(squares);
}

}  // namespace

bool HeadActivations::Quantize(const KernelTable& kernels, const PackedMatrix& head, const float* x,
                               int rows) {
  layout_ = SplitLayoutOf(head.format());
  blocks_ = head.columns() / kBlockColumns;
  row_count_ = static_cast<size_t>(rows);
  rows_.resize(std::max(rows_.size(), row_count_));
  for (size_t r = 0; r < row_count_; ++r) {
    SetTile(x + static_cast<int64_t>(r) * head.columns(), &rows_[r]);
    kernels.quantize_tile(rows_[r].tile);
    double sum = 0;
    for (const float scale : rows_[r].scale) sum += double{scale};
    if (!(sum < kActivationsMax)) return false;
  }
  return true;
}

void HeadActivations::SetTile(const float* x, Row* row) const {
  const auto blocks = static_cast<size_t>(blocks_);
  row->q.resize(blocks * kBlockColumns);
  row->scale.resize(blocks);
  row->scaled_sum.resize(blocks);
  for (std::vector<int32_t>& sums : row->offset_sums) sums.resize(blocks);
  row->tile = {.rows = 1,
               .x = x,
               .columns = blocks_ * kBlockColumns,
               .q = row->q.data(),
               .scale = row->scale.data(),
               .scaled_sum = row->scaled_sum.data(),
               .offset_sum = {row->offset_sums[0].data(), row->offset_sums[1].data(),
                              row->offset_sums[2].data()}};
}

void HeadActivations::ChooseGranules(int count) {
  RankGranules();
  chosen_count_ = std::min(count, granules());
  chosen_.assign(static_cast<size_t>(blocks_), 0);
  for (int i = 0; i < chosen_count_; ++i) {
    const int32_t granule = ranking_[static_cast<size_t>(i)];
    chosen_[static_cast<size_t>(granule / layout_.granules)] |=
        static_cast<uint8_t>(1 << (granule % layout_.granules));
  }
  tile_count_ = (row_count_ + kNarrowRows - 1) / kNarrowRows;
  tiles_.resize(std::max(tiles_.size(), tile_count_));
  int first = 0;
  for (size_t i = 0; i < tile_count_; ++i) {
    Tile& tile = tiles_[i];
    tile.first_row = first;
    tile.rows = static_cast<int>(row_count_ / tile_count_ + (i < row_count_ % tile_count_ ? 1 : 0));
    first += tile.rows;
    FillTile(&tile);
  }
}

void HeadActivations::RankGranules() {
  energies_.assign(static_cast<size_t>(granules()), 0);
  for (size_t r = 0; r < row_count_; ++r) {
    const Row& row = rows_[r];
    double total = 0;
    const auto energy = [&](size_t granule) {
      const int8_t* q = row.q.data() + granule * static_cast<size_t>(granule_columns());
      const double norm = double{row.scale[granule / static_cast<size_t>(layout_.granules)]} *
                          Norm(q, granule_columns());
      return norm * norm;
    };
    for (size_t g = 0; g < energies_.size(); ++g) total += energy(g);
    if (total <= 0) continue;
    for (size_t g = 0; g < energies_.size(); ++g) energies_[g] += energy(g) / total;
  }
  ranking_.resize(energies_.size());
  std::iota(ranking_.begin(), ranking_.end(), 0);
  std::sort(ranking_.begin(), ranking_.end(), [&](int32_t a, int32_t b) {
    const double x = energies_[static_cast<size_t>(a)], y = energies_[static_cast<size_t>(b)];
    return x != y ? x > y : a < b;
  });
}

void HeadActivations::FillTile(Tile* tile) const {
  const int rows = tile->rows;
  const auto units = static_cast<size_t>(blocks_ * parts() * rows);
  tile->q.resize(static_cast<size_t>(blocks_ * kBlockColumns * rows));
  tile->scale.resize(static_cast<size_t>(blocks_ * rows));
  tile->start.resize(units);
  tile->spread.resize(units);
  for (int r = 0; r < rows; ++r) {
    const Row& row = rows_[static_cast<size_t>(tile->first_row + r)];
    for (int64_t group = 0; group < blocks_ * kBlockColumns / 4; ++group) {
      std::memcpy(&tile->q[static_cast<size_t>(4 * (group * rows + r))],
                  &row.q[static_cast<size_t>(4 * group)], 4);
    }
    for (int64_t b = 0; b < blocks_; ++b) {
      tile->scale[static_cast<size_t>(b * rows + r)] = row.scale[static_cast<size_t>(b)];
      for (int part = 0; part < parts(); ++part) {
        const auto at = static_cast<size_t>((b * parts() + part) * rows + r);
        FillPart(row, b, part, &tile->start[at], &tile->spread[at]);
      }
    }
  }
}

HeadActivations::PartSums HeadActivations::Sum(const Row& row, int64_t block, int part,
                                               unsigned read) const {
  const int per_part = layout_.granules / parts();
  PartSums sums;
  for (int g = per_part * part; g < per_part * (part + 1); ++g) {
    const int8_t* q = row.q.data() + block * kBlockColumns + g * granule_columns();
    int sum = 0, squares = 0;
    for (int k = 0; k < granule_columns(); ++k) {
      sum += q[k];
      squares += q[k] * q[k];
    }
    sums.sum += sum;
    sums.squares += squares;
    if ((read >> g & 1) != 0) continue;
    sums.unread_sum += sum;
    sums.unread_squares += squares;
  }
  return sums;
}

// The part's dot product with what its weights are taken for beside their high bits, and the
// factor of (scale x residual) in the bound. kernels/README.md derives the margins.
void HeadActivations::FillPart(const Row& row, int64_t block, int part, int32_t* start,
                               float* spread) const {
  const PartSums sums = Sum(row, block, part, chosen_[static_cast<size_t>(block)]);
  *start = layout_.center() * sums.unread_sum - layout_.whole.offset * sums.sum;
  const double rounding = static_cast<double>(blocks_ * parts() + 16) * 0x1p-13;
  const double norm = std::sqrt(sums.unread_squares) + rounding * std::sqrt(sums.squares);
  const double scale = double{row.scale[static_cast<size_t>(block)]} / kResidualUnits;
  *spread = static_cast<float>(scale * norm * (1 + kSpreadMargin));
}

std::span<const RefinedPart> HeadActivations::Refine(int row, int count) {
  more_.assign(static_cast<size_t>(blocks_), 0);
  const int end = std::min(chosen_count_ + count, granules());
  for (int i = chosen_count_; i < end; ++i) {
    const int32_t granule = ranking_[static_cast<size_t>(i)];
    more_[static_cast<size_t>(granule / layout_.granules)] |=
        static_cast<uint8_t>(1 << (granule % layout_.granules));
  }
  const Row& from = rows_[static_cast<size_t>(row)];
  refined_.clear();
  for (int64_t b = 0; b < blocks_; ++b) {
    const unsigned more = more_[static_cast<size_t>(b)];
    const unsigned before = chosen_[static_cast<size_t>(b)];
    const int per_part = layout_.granules / parts();
    for (int part = 0; part < parts(); ++part) {
      const unsigned own = more >> (per_part * part) & ((1u << per_part) - 1);
      if (own == 0) continue;
      const PartSums old = Sum(from, b, part, before);
      const PartSums now = Sum(from, b, part, before | more);
      const double scale = double{from.scale[static_cast<size_t>(b)]} / kResidualUnits;
      const double less = std::sqrt(old.unread_squares) - std::sqrt(now.unread_squares);
      refined_.push_back({.block = static_cast<int32_t>(b),
                          .part = part,
                          .chosen = own << (per_part * part),
                          .start = layout_.center() * (now.unread_sum - old.unread_sum),
                          .scale = from.scale[static_cast<size_t>(b)],
                          .less = static_cast<float>(scale * less * (1 - kSpreadMargin))});
    }
  }
  return refined_;
}

}  // namespace facet
