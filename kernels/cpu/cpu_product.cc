#include "kernels/cpu/cpu_product.h"

#include <algorithm>
#include <cstring>

#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

constexpr int kTileFloats = kTileRows * kPanelColumns;
// The depth of a sum tree over 2^30 leaves, far more than there are.
constexpr int kMaxDepth = 32;
// A task's panels and the activations of a pass should share the second-level cache, of which
// current processors have a mebibyte or more per core.
constexpr int64_t kPassBytes = 384 << 10;
constexpr int64_t kTaskBytes = 256 << 10;
constexpr int64_t kTasksPerThread = 8;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sums leaves by the tree of kernels/sum_tree.h: after leaf number n (from 1 on) the two newest
// sums are added once per trailing zero bit of n, and what remains in the end from the newest on.
class TreeStack {
 public:
  explicit TreeStack(const KernelTable& kernels) : kernels_(kernels) {}

  // Where the next leaf's sum belongs, [kTileRows][32].
  float* next() { return sums_[depth_]; }
  void Push(int64_t size) {
    ++depth_;
    for (unsigned n = ++leaves_; n % 2 == 0; n /= 2) AddTopTwo(size);
  }
  const float* Finish(int64_t size) {
    while (depth_ > 1) AddTopTwo(size);
    depth_ = 0;
    leaves_ = 0;
    return sums_[0];
  }

 private:
  void AddTopTwo(int64_t size) {
    --depth_;
    kernels_.accumulate(sums_[depth_ - 1], sums_[depth_], size);
  }

  const KernelTable& kernels_;
  unsigned leaves_ = 0;
  int depth_ = 0;
  alignas(64) float sums_[kMaxDepth][kTileFloats];
};

}  // namespace

void CpuProduct::Run(std::span<const Part> parts, const float* x, int rows) {
  if (rows == 0) return;
  const int64_t columns = parts.front().matrix->columns();
  CutTiles(x, rows, columns);
  bool integers = false;
  for (const Part& part : parts) integers |= part.matrix->integer_product();
  if (integers) Quantize(x, rows, columns);
  CutTasks(parts, rows);
  pool_.ParallelFor(static_cast<int64_t>(tasks_.size()),
                    [&](int64_t task, int) { RunTask(tasks_[static_cast<size_t>(task)]); });
}

// As few tiles as possible, as equal as possible.
void CpuProduct::CutTiles(const float* x, int rows, int64_t columns) {
  const int count = static_cast<int>(CeilDivide(rows, kTileRows));
  tiles_.assign(static_cast<size_t>(count), ActivationTile());
  tile_rows_.assign(1, 0);
  for (int i = 0; i < count; ++i) {
    ActivationTile& tile = tiles_[static_cast<size_t>(i)];
    tile.rows = rows / count + (i < rows % count ? 1 : 0);
    tile.x = x + tile_rows_.back() * columns;
    tile.columns = columns;
    tile_rows_.push_back(tile_rows_.back() + tile.rows);
  }
  tiles_per_pass_ = static_cast<int>(std::max<int64_t>(1, kPassBytes / (kTileRows * columns)));
}

void CpuProduct::Quantize(const float* x, int rows, int64_t columns) {
  const int64_t blocks = columns / kBlockColumns;
  const size_t size = static_cast<size_t>(rows * columns);
  if (q_.size() < size) {
    q_.resize(size);
    scale_.resize(size / kBlockColumns);
    scaled_sum_.resize(size / kBlockColumns);
    negated_sum_.resize(size / kBlockColumns * 3);
  }
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const int64_t first = tile_rows_[i];
    tiles_[i].q = q_.data() + first * columns;
    tiles_[i].scale = scale_.data() + first * blocks;
    tiles_[i].scaled_sum = scaled_sum_.data() + first * blocks;
    tiles_[i].negated_sum = negated_sum_.data() + 3 * first * blocks;
  }
  pool_.ParallelFor(static_cast<int64_t>(tiles_.size()), [&](int64_t i, int) {
    const ActivationTile& tile = tiles_[static_cast<size_t>(i)];
    const int64_t first = tile_rows_[static_cast<size_t>(i)];
    const QuantizedTile to = {tile.rows, q_.data() + first * columns,
                              scale_.data() + first * blocks, scaled_sum_.data() + first * blocks,
                              negated_sum_.data() + 3 * first * blocks};
    for (int row = 0; row < tile.rows; ++row) {
      kernels_.quantize_row(x + (first + row) * columns, columns, row, to);
    }
  });
}

void CpuProduct::CutTasks(std::span<const Part> parts, int rows) {
  int64_t bytes = 0;
  for (const Part& part : parts) bytes += part.matrix->packed_bytes();
  int64_t task_bytes = CeilDivide(bytes, kTasksPerThread * pool_.threads());
  // One pass over the activations reads a task's panels once: then larger tasks are no burden.
  if (CeilDivide(rows, kTileRows) > tiles_per_pass_) task_bytes = std::min(task_bytes, kTaskBytes);
  tasks_.clear();
  for (const Part& part : parts) {
    const int64_t panels = part.matrix->panels();
    const int64_t step = std::max<int64_t>(1, task_bytes / part.matrix->panel_bytes());
    for (int64_t begin = 0; begin < panels; begin += step) {
      tasks_.push_back({&part, begin, std::min(begin + step, panels)});
    }
  }
}

void CpuProduct::RunTask(const Task& task) const {
  const int tiles = static_cast<int>(tiles_.size());
  for (int first = 0; first < tiles; first += tiles_per_pass_) {
    const int last = std::min(first + tiles_per_pass_, tiles);
    for (int64_t panel = task.begin; panel < task.end; ++panel) {
      const bool more = panel + 1 < task.end;
      RunPanel(*task.part, panel, first, last,
               more ? task.part->matrix->panel(panel + 1) : nullptr);
    }
  }
}

void CpuProduct::RunPanel(const Part& part, int64_t panel, int first_tile, int last_tile,
                          const std::byte* next_panel) const {
  const PackedMatrix& matrix = *part.matrix;
  const LeafRoots& leaves = matrix.leaves();
  const int64_t blocks = CeilDivide(matrix.columns(), kBlockColumns);
  const int64_t lines = CeilDivide(matrix.panel_bytes(), 64);
  const int64_t lines_per_block = CeilDivide(lines, blocks * (last_tile - first_tile));
  const auto& kernels = kernels_.product[static_cast<int>(matrix.format())];
  TreeStack stack(kernels_);
  for (int t = first_tile; t < last_tile; ++t) {
    const ActivationTile& tile = tiles_[static_cast<size_t>(t)];
    const int64_t first_line = (t - first_tile) * blocks * lines_per_block;
    const bool prefetches = next_panel != nullptr && first_line < lines;
    ProductArgs args;
    args.panel = matrix.panel(panel);
    args.low = matrix.low(panel);
    args.tile = tile;
    for (int root = 0; root < leaves.roots(); ++root) {
      for (int leaf = leaves.root_begin[root]; leaf < leaves.root_begin[root + 1]; ++leaf) {
        args.begin = leaves.starts[leaf];
        args.end = leaves.starts[leaf + 1];
        args.out = stack.next();
        if (prefetches) {
          const int64_t line = first_line + args.begin / kBlockColumns * lines_per_block;
          args.prefetch = {next_panel + 64 * line, matrix.low(panel + 1) + 64 * line,
                           static_cast<int>(lines_per_block)};
        }
        kernels[tile.rows - 1](args);
        stack.Push(int64_t{tile.rows} * kPanelColumns);
      }
      const float* sums = stack.Finish(int64_t{tile.rows} * kPanelColumns);
      float* out = part.out + root * part.root_stride + tile_rows_[t] * part.row_stride +
                   panel * kPanelColumns;
      for (int r = 0; r < tile.rows; ++r) {
        std::memcpy(out + r * part.row_stride, sums + r * kPanelColumns,
                    static_cast<size_t>(matrix.panel_columns(panel)) * sizeof(float));
      }
    }
  }
}

}  // namespace facet
