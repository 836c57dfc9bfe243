#include "kernels/cuda/cuda_context.h"

#include <algorithm>

#include "kernels/cuda/launch_queue.h"

namespace facet::cuda {

int CudaContext::LaunchedRows(int rows, std::initializer_list<RowsOfArray> arrays) const {
  if (!launches->deferring()) return rows;
  const int bucket = BucketOf(rows);
  const bool fits = std::all_of(arrays.begin(), arrays.end(), [&](const RowsOfArray& array) {
    return bucket * array.width <= array.size;
  });
  return fits ? bucket : rows;
}

}  // namespace facet::cuda
