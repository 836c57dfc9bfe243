#ifndef FACET_KERNELS_CPU_CPU_PRODUCT_H_
#define FACET_KERNELS_CPU_CPU_PRODUCT_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/quantized_rows.h"
#include "kernels/host/aligned_buffer.h"
#include "kernels/host/matrix_source.h"

namespace facet {

// Elementwise work on fewer floats than this is done before another thread has begun with its part.
inline constexpr int64_t kTaskFloats = 16 << 10;

// Products of activations with packed matrices, spread over a pool's threads by panels. Keeps its
// memory from call to call. One thread calls it.
class CpuProduct {
 public:
  CpuProduct(const KernelTable& kernels, ThreadPool* pool)
      : kernels_(kernels), pool_(*pool), scratch_(static_cast<size_t>(pool->threads())) {}

  // Where the sums of one matrix go: row r of root k to out + k root_stride + r row_stride.
  struct Part {
    const PackedMatrix* matrix = nullptr;
    float* out = nullptr;
    int64_t row_stride = 0;
    int64_t root_stride = 0;
    // With `up`, of the same shape, what is written is gate(product with matrix, with up).
    const PackedMatrix* up = nullptr;
    void (*gate)(const float* gate, const float* up, int64_t width, float* out) = nullptr;
    // Of a gated product: what its rows are quantised into, with nothing written to `out`.
    const QuantizedRows* inputs = nullptr;
    int64_t first_panel = 0;  // whose first column goes to out
  };

  // What is read next, to be prefetched; by default nothing.
  struct Upcoming {
    const std::byte* panel = nullptr;
    const std::byte* low = nullptr;
    int64_t lines = 0;  // of 64 bytes
    int64_t low_lines = 0;
    static Upcoming Of(const PackedMatrix& matrix, int64_t panel);
  };

  // `x`: [rows, columns], the columns of all parts.
  void Run(std::span<const Part> parts, const float* x, int rows);

  // The same in pieces, for somebody who looks at one before it has left the cache: first
  // Prepare(), then Panels(), [begin, end), from inside of a region of the pool, `thread` being the
  // caller's. `goes_on`: this thread will read panel `end` next. REQUIRES: a matrix of one root.
  void Prepare(const PackedMatrix& matrix, const float* x, int rows);
  void Panels(const Part& part, int64_t begin, int64_t end, bool goes_on, int thread);

  // From now on [begin, end) is read by products with integer weights only (ProductInputs).
  void AddInputs(const float* begin, const float* end);
  // Where the quantised form of rows goes that are about to be written to `x`; whoever asks fills
  // it in the place of the floats. Null: `x` is no such array.
  const QuantizedRows* CutInputs(const float* x, int rows, int64_t columns);
  // Fills it: write(first, count, to) writes rows [first, first + count) to `to`, from where they
  // are quantised.
  template <typename Write>
  void WriteRows(const QuantizedRows& rows, const Write& write) {
    const int64_t columns = rows.tiles().front().columns;
    SizeTiles(columns);
    const auto find = [&](int tile, int thread) {
      float* const x = tile_of(thread);
      const int first = rows.first_row(tile);
      write(first, rows.first_row(tile + 1) - first, x);
      return x;
    };
    FillTiles(rows, find, kernels_.quantize_tile);
  }
  // Floats in [begin, end) are about to be written.
  void Written(const float* begin, const float* end);

 private:
  // Consecutive panels of one part.
  struct Task {
    const Part* part;
    int64_t begin;
    int64_t end;
    Upcoming Begin() const { return Upcoming::Of(*part->matrix, begin); }
  };
  // In which forms, beside floats, matrices read their activations.
  struct Forms {
    bool blocks = false;
    bool pairs = false;
    void Add(const PackedMatrix& matrix) {
      blocks |= matrix.integer_product();
      pairs |= matrix.bfloat_product();
    }
  };
  // What a thread needs.
  struct Scratch {
    AlignedBuffer panel;    // unpacked
    AlignedBuffer gate_up;  // [2][rows of a pass][32]
    AlignedBuffer tile;     // [kTileRows][columns]
  };

  void Prepare(std::span<const Part> parts, const float* x, int rows);
  // Makes a form of tiles, each from where find(tile, thread) says that its floats are, in parallel
  // if there is enough to do.
  template <typename Find>
  void FillTiles(const QuantizedRows& rows, const Find& find,
                 void (*fill)(const ActivationTile& tile)) {
    const int tiles = static_cast<int>(rows.tiles().size());
    if (tiles == 0) return;
    const int64_t tile_floats = kTileRows * rows.tiles().front().columns;
    const int step = static_cast<int>(std::max<int64_t>(1, kTaskFloats / tile_floats));
    pool_.ParallelFor((tiles + step - 1) / step, [&](int64_t task, int thread) {
      const int begin = static_cast<int>(task) * step;
      for (int index = begin; index < std::min(begin + step, tiles); ++index) {
        ActivationTile tile = rows.tiles()[static_cast<size_t>(index)];
        tile.x = find(index, thread);
        fill(tile);
      }
    });
  }
  void SizeTiles(int64_t columns);
  float* tile_of(int thread) {
    return reinterpret_cast<float*>(scratch_[static_cast<size_t>(thread)].tile.data());
  }
  ProductInputs* InputsAt(const float* x);
  const QuantizedRows& Inputs(const float* x, int rows, int64_t columns, const Forms& forms);
  void CutTasks(std::span<const Part> parts, int rows);
  void SizeScratch(std::span<const Part> parts);
  void Drain(Scratch* scratch);
  const Task* TakeTask();  // null: there are none left
  // Finds out what the product that begins with `first` was followed by the last time.
  void FindFollower(const PackedMatrix& first);
  void RunTask(const Task& task, const Upcoming& next, Scratch* scratch) const;
  void RunPanel(const Part& part, int64_t panel, const Upcoming& next, int first_tile,
                int last_tile, Scratch* scratch) const;
  // Both fill `args` in where it is: a copy of fields just written would wait for them.
  void RunGatedPanel(const Part& part, int64_t panel, const Upcoming& next, int first_tile,
                     PanelArgs* args, Scratch* scratch) const;
  // Gates a panel of some tiles and quantises it, as block `block` of their rows.
  void QuantizeGated(const Part& part, std::span<const ActivationTile> tiles, int64_t block,
                     float* gate, const float* up) const;
  void Multiply(const PackedMatrix& matrix, int64_t panel, PanelArgs* args, Scratch* scratch) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // by thread
  std::deque<ProductInputs> inputs_;
  QuantizedRows own_;                    // of a product that reads floats
  const QuantizedRows* rows_ = nullptr;  // of the product that is running
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  int tiles_per_pass_ = 1;
  // By a hash of a product's first panel, where the product began that came after it: steps repeat
  // their products, so the threads' last tasks prefetch it. It may be gone by now, or another's:
  // nobody reads it.
  std::array<Upcoming, 512> followers_;
  Upcoming* follower_ = nullptr;  // of the latest product
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_PRODUCT_H_
