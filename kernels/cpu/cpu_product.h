#ifndef FACET_KERNELS_CPU_CPU_PRODUCT_H_
#define FACET_KERNELS_CPU_CPU_PRODUCT_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/quantized_rows.h"
#include "kernels/host/aligned_buffer.h"
#include "kernels/host/matrix_source.h"

namespace facet {

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
    int64_t first_panel = 0;  // whose first column goes to out
  };

  // `x`: [rows, columns], the columns of all parts.
  void Run(std::span<const Part> parts, const float* x, int rows);

  // The same in pieces, for somebody who looks at one before it has left the cache: first
  // Prepare(), then Panels(), [begin, end), from inside of a region of the pool, `thread` being the
  // caller's. `goes_on`: this thread will read panel `end` next. REQUIRES: a matrix of one root.
  void Prepare(const PackedMatrix& matrix, const float* x, int rows);
  void Panels(const Part& part, int64_t begin, int64_t end, bool goes_on, int thread);

  // For `rows` rows at `x` that are about to be written and that a product will most likely read:
  // calls write(row) for each and quantises it then, while it is in the cache. Products of just
  // these rows, or of these and those of the calls before that they follow on, use that form
  // until Written().
  template <typename Write>
  void WriteRows(const float* x, int rows, int64_t columns, const Write& write) {
    const int first = held_.Add(x, rows, columns);
    const int begin = held_.first_row(first);
    const int64_t tiles = static_cast<int64_t>(held_.tiles().size()) - first;
    pool_.ParallelFor(tiles, [&](int64_t i, int) {
      const int tile = first + static_cast<int>(i);
      for (int row = held_.first_row(tile); row < held_.first_row(tile + 1); ++row) {
        write(row - begin);
      }
      kernels_.quantize_tile(held_.tiles()[static_cast<size_t>(tile)]);
    });
  }
  // Whether WriteRows() pays: products lately had integer weights.
  bool quantizes(int64_t columns) const { return quantizes_ && columns % kBlockColumns == 0; }
  // Floats in [begin, end) are about to change.
  void Written(const float* begin, const float* end) {
    if (held_.Overlap(begin, end)) held_.Clear();
  }

 private:
  // Consecutive panels of one part.
  struct Task {
    const Part* part;
    int64_t begin;
    int64_t end;
  };
  struct Place {
    const Part* part = nullptr;  // null: nowhere
    int64_t panel = 0;
  };
  // What a thread needs.
  struct Scratch {
    AlignedBuffer panel;    // unpacked
    AlignedBuffer gate_up;  // [2][rows of a pass][32]
  };

  void Prepare(std::span<const Part> parts, const float* x, int rows);
  const QuantizedRows& Inputs(const float* x, int rows, int64_t columns);
  void CutTasks(std::span<const Part> parts, int rows);
  void SizeScratch(std::span<const Part> parts);
  void Drain(Scratch* scratch);
  const Task* TakeTask();  // null: there are none left
  // `next` is the task of this thread after it, or null.
  void RunTask(const Task& task, const Task* next, Scratch* scratch) const;
  // `next` is prefetched.
  void RunPanel(const Part& part, int64_t panel, Place next, int first_tile, int last_tile,
                Scratch* scratch) const;
  // Both fill `args` in where it is: a copy of fields just written would wait for them.
  void RunGatedPanel(const Part& part, int64_t panel, Place next, PanelArgs* args,
                     Scratch* scratch) const;
  void Multiply(const PackedMatrix& matrix, int64_t panel, PanelArgs* args, Scratch* scratch) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // by thread
  QuantizedRows held_;            // as long as nobody writes to them
  QuantizedRows own_;             // of a product whose rows are not held
  bool quantizes_ = false;
  const QuantizedRows* rows_ = nullptr;  // of the product that is running
  std::vector<Task> tasks_;
  std::atomic<size_t> next_task_{0};
  int tiles_per_pass_ = 1;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_PRODUCT_H_
