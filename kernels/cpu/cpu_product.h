#ifndef FACET_KERNELS_CPU_CPU_PRODUCT_H_
#define FACET_KERNELS_CPU_CPU_PRODUCT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/host/aligned_buffer.h"

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
  };

  // `x`: [rows, columns], the columns of all parts.
  void Run(std::span<const Part> parts, const float* x, int rows);

  // The same in pieces, for somebody who looks at one before it has left the cache: first
  // Prepare(), then Panels() from inside of a region of the pool, `thread` being the caller's.
  // Panels [begin, end); row r of panel `begin` goes to out + r row_stride, the next behind it.
  // REQUIRES: a matrix of one root.
  void Prepare(const PackedMatrix& matrix, const float* x, int rows);
  void Panels(const PackedMatrix& matrix, int64_t begin, int64_t end, float* out,
              int64_t row_stride, int thread);

 private:
  // Consecutive panels of one part.
  struct Task {
    const Part* part;
    int64_t begin;
    int64_t end;
    int64_t fetch_end;        // the panels before this are prefetched
    int64_t first_panel = 0;  // which part->out belongs to
  };
  // What a thread needs.
  struct Scratch {
    AlignedBuffer panel;    // unpacked
    AlignedBuffer gate_up;  // [2][rows of a pass][32]
  };

  void Prepare(std::span<const Part> parts, const float* x, int rows);
  void CutTiles(const float* x, int rows, int64_t columns);
  void Quantize(int rows, int64_t columns);
  void CutTasks(std::span<const Part> parts, int rows);
  void SizeScratch(std::span<const Part> parts);
  void RunTask(const Task& task, Scratch* scratch) const;
  void RunPanel(const Task& task, int64_t panel, int first_tile, int last_tile,
                Scratch* scratch) const;
  // Both fill `args` in where it is: a copy of fields just written would wait for them.
  void RunGatedPanel(const Task& task, int64_t panel, PanelArgs* args, Scratch* scratch) const;
  void Multiply(const PackedMatrix& matrix, int64_t panel, PanelArgs* args, Scratch* scratch) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // by thread
  std::vector<ActivationTile> tiles_;
  std::vector<int> tile_rows_;  // first row of each tile, and the row count at the end
  std::vector<Task> tasks_;
  int tiles_per_pass_ = 1;
  // The quantised activations, tile after tile.
  std::vector<int8_t> q_;
  std::vector<float> scale_;
  std::vector<float> scaled_sum_;
  std::vector<int32_t> offset_sums_[3];
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_PRODUCT_H_
