#ifndef FACET_KERNELS_CPU_HEAD_ACTIVATIONS_H_
#define FACET_KERNELS_CPU_HEAD_ACTIVATIONS_H_

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"

namespace facet {

// The quantised activations of the few rows that search a split head, and what they contribute to
// the bounds of its logits (kernels/README.md, "Screening"). Keeps its memory. One thread.
class HeadActivations {
 public:
  // Rows that the first pass works on together, as in NarrowArgs.
  struct Tile {
    int first_row = 0;
    int rows = 0;
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<int32_t> start;
    std::vector<float> spread;
  };

  // x: [rows, head.columns()], borrowed. False: the activations are too large to bound.
  bool Quantize(const KernelTable& kernels, const PackedMatrix& head, const float* x, int rows);
  // The first pass reads the low bits of the `count` granules with the largest shares of the
  // rows' squared activations.
  void ChooseGranules(int count);
  // What reading up to `count` granules more, the next largest, changes in the bounds of a row.
  // Valid until the next call.
  std::span<const RefinedPart> Refine(int row, int count);

  const ActivationTile& row(int index) const { return rows_[static_cast<size_t>(index)].tile; }
  std::span<const Tile> tiles() const { return std::span(tiles_).first(tile_count_); }
  const uint8_t* chosen() const { return chosen_.data(); }

 private:
  struct Row {
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<float> scaled_sum;
    std::vector<int32_t> offset_sums[3];
    ActivationTile tile;  // of the above
  };
  // Sums over the activations of one part of a block.
  struct PartSums {
    int sum = 0;
    int squares = 0;
    int unread_sum = 0;  // of granules that are not read
    int unread_squares = 0;
  };

  void SetTile(const float* x, Row* row) const;
  void RankGranules();
  void FillTile(Tile* tile) const;
  void FillPart(const Row& row, int64_t block, int part, int32_t* start, float* spread) const;
  PartSums Sum(const Row& row, int64_t block, int part, unsigned read) const;

  int granules() const { return static_cast<int>(blocks_) * layout_.granules; }
  int granule_columns() const { return 32 / layout_.granules; }
  int parts() const { return layout_.whole.scales_per_block; }

  SplitLayout layout_;
  int64_t blocks_ = 0;
  size_t row_count_ = 0;
  std::vector<Row> rows_;
  size_t tile_count_ = 0;
  std::vector<Tile> tiles_;
  std::vector<double> energies_;  // [granules]
  std::vector<int32_t> ranking_;  // granules by energy
  int chosen_count_ = 0;          // the first of these
  std::vector<uint8_t> chosen_;   // as in NarrowArgs
  std::vector<uint8_t> more_;     // the same for Refine()
  std::vector<RefinedPart> refined_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_HEAD_ACTIVATIONS_H_
