#include "kernels/cpu/cpu_product.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

// A task's panels and the activations of a pass should share the second-level cache, of which
// current processors have a mebibyte or more per core.
constexpr int64_t kPassBytes = 384 << 10;
constexpr int64_t kTaskBytes = 256 << 10;
constexpr int64_t kTasksPerThread = 8;
// From so many tiles on a panel is unpacked before they use it.
constexpr int kUnpackTiles = 11;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

void Grow(AlignedBuffer* buffer, size_t bytes) {
  if (buffer->size() >= bytes) return;
  absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(bytes);
  FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
  *buffer = *std::move(larger);
}

// `panel` is prefetched, unless it is the end.
void SetNext(const PackedMatrix& matrix, int64_t panel, int64_t end, PanelArgs* args) {
  args->next = matrix.panel(panel);
  args->next_low = matrix.low(panel);
  args->next_lines = panel < end ? CeilDivide(matrix.panel_bytes(), 64) : 0;
  args->next_low_lines = panel < end ? CeilDivide(matrix.low_bytes(), 64) : 0;
}

}  // namespace

void CpuProduct::Run(std::span<const Part> parts, const float* x, int rows) {
  if (rows == 0) return;
  Prepare(parts, x, rows);
  CutTasks(parts, rows);
  pool_.ParallelFor(static_cast<int64_t>(tasks_.size()), [&](int64_t task, int thread) {
    RunTask(tasks_[static_cast<size_t>(task)], &scratch_[static_cast<size_t>(thread)]);
  });
}

void CpuProduct::Prepare(const PackedMatrix& matrix, const float* x, int rows) {
  const Part part = {&matrix};
  Prepare(std::span(&part, 1), x, rows);
}

void CpuProduct::Panels(const PackedMatrix& matrix, int64_t begin, int64_t end, float* out,
                        int64_t row_stride, int thread) {
  const Part part = {&matrix, out, row_stride};
  const bool one_pass = static_cast<int>(tiles_.size()) <= tiles_per_pass_;
  const int64_t bytes = matrix.panel_bytes() + matrix.low_bytes();
  const int64_t step = one_pass ? end - begin : std::max<int64_t>(1, kTaskBytes / bytes);
  for (int64_t at = begin; at < end; at += step) {
    const Task task = {&part, at, std::min(at + step, end), matrix.panels(), begin};
    RunTask(task, &scratch_[static_cast<size_t>(thread)]);
  }
}

void CpuProduct::Prepare(std::span<const Part> parts, const float* x, int rows) {
  const int64_t columns = parts.front().matrix->columns();
  CutTiles(x, rows, columns);
  bool integers = false;
  for (const Part& part : parts) {
    integers |= part.matrix->integer_product();
    if (part.up != nullptr) integers |= part.up->integer_product();
  }
  if (integers) Quantize(rows, columns);
  SizeScratch(parts);
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

void CpuProduct::Quantize(int rows, int64_t columns) {
  const int64_t blocks = columns / kBlockColumns;
  const size_t size = static_cast<size_t>(rows * columns);
  if (q_.size() < size) {
    q_.resize(size);
    scale_.resize(size / kBlockColumns);
    scaled_sum_.resize(size / kBlockColumns);
    for (std::vector<int32_t>& sums : offset_sums_) sums.resize(size / kBlockColumns);
  }
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const int64_t first = tile_rows_[i];
    tiles_[i].q = q_.data() + first * columns;
    tiles_[i].scale = scale_.data() + first * blocks;
    tiles_[i].scaled_sum = scaled_sum_.data() + first * blocks;
    for (size_t k = 0; k < 3; ++k) {
      tiles_[i].offset_sum[k] = offset_sums_[k].data() + first * blocks;
    }
  }
  pool_.ParallelFor(static_cast<int64_t>(tiles_.size()), [&](int64_t i, int) {
    kernels_.quantize_tile(tiles_[static_cast<size_t>(i)]);
  });
}

void CpuProduct::CutTasks(std::span<const Part> parts, int rows) {
  int64_t bytes = 0;
  for (const Part& part : parts) {
    bytes += part.matrix->packed_bytes() + (part.up != nullptr ? part.up->packed_bytes() : 0);
  }
  int64_t task_bytes = CeilDivide(bytes, kTasksPerThread * pool_.threads());
  // One pass over the activations reads a task's panels once: then larger tasks are no burden.
  if (CeilDivide(rows, kTileRows) > tiles_per_pass_) task_bytes = std::min(task_bytes, kTaskBytes);
  tasks_.clear();
  for (const Part& part : parts) {
    const int64_t panels = part.matrix->panels();
    int64_t panel_bytes = part.matrix->panel_bytes() + part.matrix->low_bytes();
    if (part.up != nullptr) panel_bytes += part.up->panel_bytes() + part.up->low_bytes();
    const int64_t step = std::max<int64_t>(1, task_bytes / panel_bytes);
    for (int64_t begin = 0; begin < panels; begin += step) {
      const int64_t end = std::min(begin + step, panels);
      tasks_.push_back({&part, begin, end, end});
    }
  }
}

void CpuProduct::SizeScratch(std::span<const Part> parts) {
  const size_t pass_rows =
      static_cast<size_t>(std::min(tile_rows_.back(), tiles_per_pass_ * kTileRows));
  size_t panel_bytes = 0;
  size_t gate_up_bytes = 0;
  for (const Part& part : parts) {
    for (const PackedMatrix* matrix : {part.matrix, part.up}) {
      if (matrix == nullptr || !matrix->integer_product()) continue;
      const PackedLayout unpacked = LayoutOf(UnpackedFormat(matrix->format()));
      const int64_t blocks = matrix->columns() / kBlockColumns;
      panel_bytes = std::max(panel_bytes, static_cast<size_t>(unpacked.bytes(blocks)));
    }
    if (part.up != nullptr) gate_up_bytes = 2 * pass_rows * kPanelColumns * sizeof(float);
  }
  for (Scratch& scratch : scratch_) {
    Grow(&scratch.panel, panel_bytes);
    Grow(&scratch.gate_up, gate_up_bytes);
  }
}

void CpuProduct::RunTask(const Task& task, Scratch* scratch) const {
  const int tiles = static_cast<int>(tiles_.size());
  for (int first = 0; first < tiles; first += tiles_per_pass_) {
    const int last = std::min(first + tiles_per_pass_, tiles);
    for (int64_t panel = task.begin; panel < task.end; ++panel) {
      RunPanel(task, panel, first, last, scratch);
    }
  }
}

void CpuProduct::RunPanel(const Task& task, int64_t panel, int first_tile, int last_tile,
                          Scratch* scratch) const {
  const Part& part = *task.part;
  PanelArgs args;
  args.tiles = tiles_.data() + first_tile;
  args.tile_count = last_tile - first_tile;
  args.columns = part.matrix->panel_columns(panel);
  args.out = part.out + tile_rows_[static_cast<size_t>(first_tile)] * part.row_stride +
             (panel - task.first_panel) * kPanelColumns;
  args.row_stride = part.row_stride;
  args.root_stride = part.root_stride;
  if (part.up == nullptr) {
    SetNext(*part.matrix, panel + 1, task.fetch_end, &args);
    Multiply(*part.matrix, panel, &args, scratch);
  } else {
    RunGatedPanel(task, panel, &args, scratch);
  }
}

void CpuProduct::RunGatedPanel(const Task& task, int64_t panel, PanelArgs* args,
                               Scratch* scratch) const {
  const Part& part = *task.part;
  int64_t rows = 0;
  for (int i = 0; i < args->tile_count; ++i) rows += args->tiles[i].rows;
  float* gate = reinterpret_cast<float*>(scratch->gate_up.data());
  float* up = gate + rows * kPanelColumns;
  float* out = args->out;
  const size_t row_bytes = static_cast<size_t>(args->columns) * sizeof(float);
  args->row_stride = kPanelColumns;
  args->columns = kPanelColumns;
  args->out = gate;
  SetNext(*part.up, panel, task.fetch_end, args);
  Multiply(*part.matrix, panel, args, scratch);
  args->out = up;
  SetNext(*part.matrix, panel + 1, task.fetch_end, args);
  Multiply(*part.up, panel, args, scratch);
  part.gate(gate, up, rows * kPanelColumns, gate);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(out + row * part.row_stride, gate + row * kPanelColumns, row_bytes);
  }
}

void CpuProduct::Multiply(const PackedMatrix& matrix, int64_t panel, PanelArgs* args,
                          Scratch* scratch) const {
  const LeafRoots& leaves = matrix.leaves();
  args->leaf_starts = leaves.starts.data();
  args->root_begin = leaves.root_begin.data();
  args->roots = leaves.roots();
  args->panel = matrix.panel(panel);
  args->low = matrix.low(panel);
  PackedFormat format = matrix.format();
  const auto unpack = kernels_.unpack[static_cast<int>(format)];
  if (unpack != nullptr && args->tile_count >= kUnpackTiles) {
    unpack(args->panel, args->low, matrix.columns() / kBlockColumns, scratch->panel.data());
    args->panel = scratch->panel.data();
    format = UnpackedFormat(format);
  }
  kernels_.product[static_cast<int>(format)](*args);
}

}  // namespace facet
