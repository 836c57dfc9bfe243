#include "kernels/cpu/cpu_product.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/prng.h"
#include "kernels/host/matrix_source.h"

namespace facet {
namespace {

// A task's panels and the activations of a pass should share the second-level cache, of which
// current processors have a mebibyte or more per core.
constexpr int64_t kPassBytes = 384 << 10;
constexpr int64_t kTaskBytes = 256 << 10;
constexpr int64_t kTasksPerThread = 16;  // of which it holds two
// From so many tiles on a panel is unpacked before they use it.
constexpr int kUnpackTiles = 11;
// The same of split formats, which are unpacked as the first tile uses them.
constexpr int kKeepTiles = 3;

// So many tiles are gated and quantised at a time.
constexpr size_t kGatedTiles = 8;

// Behind a thread's unpacked panel: a prefetcher that runs past its end must not take lines that
// another thread is writing.
constexpr size_t kApartBytes = 4096;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

void Grow(AlignedBuffer* buffer, size_t bytes) {
  if (buffer->size() >= bytes) return;
  absl::StatusOr<AlignedBuffer> larger = AlignedBuffer::Make(bytes);
  FACET_CHECK(larger.ok(), "{}", larger.status().ToString());
  *buffer = *std::move(larger);
}

void SetNext(const CpuProduct::Upcoming& next, PanelArgs* args) {
  args->next = next.panel;
  args->next_low = next.low;
  args->next_lines = next.lines;
  args->next_low_lines = next.low_lines;
}

}  // namespace

CpuProduct::Upcoming CpuProduct::Upcoming::Of(const PackedMatrix& matrix, int64_t panel) {
  return {matrix.panel(panel), matrix.low(panel), CeilDivide(matrix.panel_bytes(), 64),
          CeilDivide(matrix.low_bytes(), 64)};
}

void CpuProduct::Run(std::span<const Part> parts, const float* x, int rows) {
  if (rows == 0) return;
  Prepare(parts, x, rows);
  CutTasks(parts, rows);
  next_task_.store(0, std::memory_order_relaxed);
  const int64_t drains = std::min<int64_t>(pool_.threads(), static_cast<int64_t>(tasks_.size()));
  pool_.ParallelFor(drains,
                    [&](int64_t, int thread) { Drain(&scratch_[static_cast<size_t>(thread)]); });
}

void CpuProduct::Prepare(const PackedMatrix& matrix, const float* x, int rows) {
  const Part part = {&matrix};
  Prepare(std::span(&part, 1), x, rows);
}

void CpuProduct::Panels(const Part& part, int64_t begin, int64_t end, bool goes_on, int thread) {
  const bool one_pass = static_cast<int>(rows_->tiles().size()) <= tiles_per_pass_;
  const int64_t bytes = part.matrix->panel_bytes() + part.matrix->low_bytes();
  const int64_t step = one_pass ? end - begin : std::max<int64_t>(1, kTaskBytes / bytes);
  for (int64_t at = begin; at < end; at += step) {
    const Task task = {&part, at, std::min(at + step, end)};
    Upcoming next;
    if (task.end < end || goes_on) {
      next = task.end < part.matrix->panels() ? Upcoming::Of(*part.matrix, task.end) : *follower_;
    }
    RunTask(task, next, &scratch_[static_cast<size_t>(thread)]);
  }
}

void CpuProduct::Prepare(std::span<const Part> parts, const float* x, int rows) {
  const int64_t columns = parts.front().matrix->columns();
  Forms forms;
  for (const Part& part : parts) {
    forms.Add(*part.matrix);
    if (part.up != nullptr) forms.Add(*part.up);
  }
  rows_ = &Inputs(x, rows, columns, forms);
  tiles_per_pass_ = static_cast<int>(std::max<int64_t>(1, kPassBytes / (kTileRows * columns)));
  SizeScratch(parts);
  FindFollower(*parts.front().matrix);
}

void CpuProduct::FindFollower(const PackedMatrix& first) {
  if (follower_ != nullptr) *follower_ = Upcoming::Of(first, 0);
  const uint64_t hash = Mix64(reinterpret_cast<uintptr_t>(first.panel(0)));
  follower_ = &followers_[hash % followers_.size()];
}

// Takes its next task before it begins one, so that it knows what to prefetch at the end of it.
void CpuProduct::Drain(Scratch* scratch) {
  const Task* task = TakeTask();
  while (task != nullptr) {
    const Task* next = TakeTask();
    RunTask(*task, next != nullptr ? next->Begin() : *follower_, scratch);
    task = next;
  }
}

const CpuProduct::Task* CpuProduct::TakeTask() {
  const size_t index = next_task_.fetch_add(1, std::memory_order_relaxed);
  return index < tasks_.size() ? &tasks_[index] : nullptr;
}

void CpuProduct::AddInputs(const float* begin, const float* end) {
  inputs_.push_back({begin, end, {}});
}

ProductInputs* CpuProduct::InputsAt(const float* x) {
  for (ProductInputs& inputs : inputs_) {
    if (inputs.begin <= x && x < inputs.end) return &inputs;
  }
  return nullptr;
}

const QuantizedRows* CpuProduct::CutInputs(const float* x, int rows, int64_t columns) {
  ProductInputs* inputs = InputsAt(x);
  if (inputs == nullptr) return nullptr;
  FACET_CHECK(columns % kBlockColumns == 0, "{} columns to be quantised", columns);
  inputs->rows.Cut(x, rows, columns);
  return &inputs->rows;
}

void CpuProduct::Written(const float* begin, const float* end) {
  for (ProductInputs& inputs : inputs_) {
    if (begin < inputs.end && inputs.begin < end) inputs.rows.Clear();
  }
}

void CpuProduct::SizeTiles(int64_t columns) {
  for (Scratch& scratch : scratch_) {
    Grow(&scratch.tile, static_cast<size_t>(kTileRows * columns) * sizeof(float));
  }
}

const QuantizedRows& CpuProduct::Inputs(const float* x, int rows, int64_t columns,
                                        const Forms& forms) {
  const ProductInputs* inputs = InputsAt(x);
  if (inputs != nullptr && !inputs->rows.empty()) {
    FACET_CHECK(inputs->rows.Are(x, rows, columns) && forms.blocks && !forms.pairs,
                "{} rows of {} are read, but others were written", rows, columns);
    return inputs->rows;
  }
  own_.Cut(x, rows, columns);
  const auto find = [&](int tile, int) { return own_.tiles()[static_cast<size_t>(tile)].x; };
  if (forms.blocks) FillTiles(own_, find, kernels_.quantize_tile);
  if (forms.pairs) FillTiles(own_, find, kernels_.round_tile);
  return own_;
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
      tasks_.push_back({&part, begin, std::min(begin + step, panels)});
    }
  }
}

void CpuProduct::SizeScratch(std::span<const Part> parts) {
  const int row_count = rows_->first_row(static_cast<int>(rows_->tiles().size()));
  const size_t pass_rows = static_cast<size_t>(std::min(row_count, tiles_per_pass_ * kTileRows));
  size_t panel_bytes = 0;
  size_t gate_up_bytes = 0;
  for (const Part& part : parts) {
    for (const PackedMatrix* matrix : {part.matrix, part.up}) {
      if (matrix == nullptr || !matrix->integer_product()) continue;
      const PackedLayout unpacked = LayoutOf(UnpackedFormat(matrix->format()));
      const int64_t blocks = matrix->columns() / kBlockColumns;
      panel_bytes =
          std::max(panel_bytes, static_cast<size_t>(unpacked.bytes(blocks)) + kApartBytes);
    }
    if (part.up != nullptr) gate_up_bytes = 2 * pass_rows * kPanelColumns * sizeof(float);
  }
  for (Scratch& scratch : scratch_) {
    Grow(&scratch.panel, panel_bytes);
    Grow(&scratch.gate_up, gate_up_bytes);
  }
}

void CpuProduct::RunTask(const Task& task, const Upcoming& next, Scratch* scratch) const {
  const int tiles = static_cast<int>(rows_->tiles().size());
  for (int first = 0; first < tiles; first += tiles_per_pass_) {
    const int last = std::min(first + tiles_per_pass_, tiles);
    for (int64_t panel = task.begin; panel + 1 < task.end; ++panel) {
      RunPanel(*task.part, panel, Upcoming::Of(*task.part->matrix, panel + 1), first, last,
               scratch);
    }
    // The next pass finds its panels in the cache.
    RunPanel(*task.part, task.end - 1, last == tiles ? next : Upcoming(), first, last, scratch);
  }
}

void CpuProduct::RunPanel(const Part& part, int64_t panel, const Upcoming& next, int first_tile,
                          int last_tile, Scratch* scratch) const {
  PanelArgs args;
  args.tiles = rows_->tiles().data() + first_tile;
  args.tile_count = last_tile - first_tile;
  args.columns = part.matrix->panel_columns(panel);
  args.out = part.out + rows_->first_row(first_tile) * part.row_stride +
             (panel - part.first_panel) * kPanelColumns;
  args.row_stride = part.row_stride;
  args.root_stride = part.root_stride;
  if (part.up == nullptr) {
    SetNext(next, &args);
    Multiply(*part.matrix, panel, &args, scratch);
  } else {
    RunGatedPanel(part, panel, next, first_tile, &args, scratch);
  }
}

void CpuProduct::RunGatedPanel(const Part& part, int64_t panel, const Upcoming& next,
                               int first_tile, PanelArgs* args, Scratch* scratch) const {
  int64_t rows = 0;
  for (int i = 0; i < args->tile_count; ++i) rows += args->tiles[i].rows;
  float* gate = reinterpret_cast<float*>(scratch->gate_up.data());
  float* up = gate + rows * kPanelColumns;
  float* out = args->out;
  const size_t row_bytes = static_cast<size_t>(args->columns) * sizeof(float);
  args->row_stride = kPanelColumns;
  args->columns = kPanelColumns;
  args->out = gate;
  SetNext(Upcoming::Of(*part.up, panel), args);
  Multiply(*part.matrix, panel, args, scratch);
  args->out = up;
  SetNext(next, args);
  Multiply(*part.up, panel, args, scratch);
  if (part.inputs != nullptr) {
    const std::span tiles = part.inputs->tiles().subspan(static_cast<size_t>(first_tile),
                                                         static_cast<size_t>(args->tile_count));
    return QuantizeGated(part, tiles, panel - part.first_panel, gate, up);
  }
  part.gate(gate, up, rows * kPanelColumns, gate);
  for (int64_t row = 0; row < rows; ++row) {
    std::memcpy(out + row * part.row_stride, gate + row * kPanelColumns, row_bytes);
  }
}

// Some tiles at a time, so that what the gate writes is quantised from the first-level cache.
void CpuProduct::QuantizeGated(const Part& part, std::span<const ActivationTile> tiles,
                               int64_t block, float* gate, const float* up) const {
  while (!tiles.empty()) {
    const std::span some = tiles.first(std::min(tiles.size(), kGatedTiles));
    int64_t size = 0;
    for (const ActivationTile& tile : some) size += tile.rows * kPanelColumns;
    part.gate(gate, up, size, gate);
    kernels_.quantize_block(some.data(), static_cast<int>(some.size()), block, gate);
    gate += size;
    up += size;
    tiles = tiles.subspan(some.size());
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
  const auto keeping = kernels_.keeping_product[static_cast<int>(format)];
  if (keeping != nullptr && args->tile_count >= kKeepTiles) {
    args->unpacked = scratch->panel.data();
    return keeping(*args);
  }
  const auto unpack = kernels_.unpack[static_cast<int>(format)];
  if (unpack != nullptr && args->tile_count >= kUnpackTiles) {
    unpack(args->panel, matrix.columns() / kBlockColumns, scratch->panel.data());
    args->panel = scratch->panel.data();
    format = UnpackedFormat(format);
  }
  kernels_.product[static_cast<int>(format)](*args);
}

}  // namespace facet
