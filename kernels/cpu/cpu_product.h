#ifndef FACET_KERNELS_CPU_CPU_PRODUCT_H_
#define FACET_KERNELS_CPU_CPU_PRODUCT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"

namespace facet {

// Products of activations with packed matrices, spread over a pool's threads by panels. Keeps the
// memory for quantised activations from call to call. One thread calls it.
class CpuProduct {
 public:
  CpuProduct(const KernelTable& kernels, ThreadPool* pool) : kernels_(kernels), pool_(*pool) {}

  // Where the sums of one matrix go: row r of root k to out + k root_stride + r row_stride.
  struct Part {
    const PackedMatrix* matrix = nullptr;
    float* out = nullptr;
    int64_t row_stride = 0;
    int64_t root_stride = 0;
  };

  // `x`: [rows, columns], the columns of all parts.
  void Run(std::span<const Part> parts, const float* x, int rows);

 private:
  // Consecutive panels of one part.
  struct Task {
    const Part* part;
    int64_t begin;
    int64_t end;
  };

  void CutTiles(const float* x, int rows, int64_t columns);
  void Quantize(const float* x, int rows, int64_t columns);
  void CutTasks(std::span<const Part> parts, int rows);
  void RunTask(const Task& task) const;
  void RunPanel(const Part& part, int64_t panel, int first_tile, int last_tile,
                const std::byte* next_panel) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<ActivationTile> tiles_;
  std::vector<int> tile_rows_;  // first row of each tile, and the row count at the end
  std::vector<Task> tasks_;
  int tiles_per_pass_ = 1;
  // The quantised activations, tile after tile.
  std::vector<int8_t> q_;
  std::vector<float> scale_;
  std::vector<float> scaled_sum_;
  std::vector<int32_t> negated_sum_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_PRODUCT_H_
