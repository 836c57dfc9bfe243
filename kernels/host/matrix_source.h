#ifndef FACET_KERNELS_HOST_MATRIX_SOURCE_H_
#define FACET_KERNELS_HOST_MATRIX_SOURCE_H_

// What devices in host memory share when they read a MatrixSource.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"
#include "kernels/leaf_unit.h"

namespace facet {

// InvalidArgument, naming the tensor, where the shape, the type, the row order or the cut cannot
// be right.
absl::Status CheckSource(const MatrixSource& source, const LeafCut* cut);

// The first block of output row `row`.
const std::byte* SourceRow(const MatrixSource& source, int64_t row);

// InvalidArgument, naming the tensor and the row, if a scale or minimum of the row is infinite or
// not a number. Types without scales always pass.
absl::Status CheckScales(const MatrixSource& source, int64_t row);

// The leaves of a matrix, grouped by the roots they are added up to.
struct LeafRoots {
  std::vector<int64_t> starts;  // as in LeafCut
  std::vector<int> root_begin;  // leaf where each root begins, and the leaf count at the end
  int roots() const { return static_cast<int>(root_begin.size()) - 1; }
};
// One leaf over everything if `cut` is null.
LeafRoots MakeLeafRoots(int64_t columns, const LeafCut* cut);

}  // namespace facet

#endif  // FACET_KERNELS_HOST_MATRIX_SOURCE_H_
