#ifndef FACET_KERNELS_CUDA_TREE_SCHEDULE_H_
#define FACET_KERNELS_CUDA_TREE_SCHEDULE_H_

#include "kernels/cuda/kernels.h"
#include "kernels/sum_tree.h"

namespace facet::cuda {

// In which order SumTreeRoots() adds the roots of all ranks: fills `count` and `merges`.
// REQUIRES: the tree has at most kTreeRootsMax roots and kTreeLevelsMax levels.
void ScheduleTree(const SumTree& tree, TreeSum* sum);

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_TREE_SCHEDULE_H_
