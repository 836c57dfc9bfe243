#include "kernels/cuda/tree_schedule.h"

#include <vector>

#include "base/check.h"

namespace facet::cuda {
namespace {

// Walks the tree's nodes above the roots, left to right. A node is added up when its right half is
// there, which the last root before that moment has brought.
class Scheduler {
 public:
  explicit Scheduler(const SumTree& tree) {
    for (int rank = 0; rank < tree.world(); ++rank) {
      roots_.insert(roots_.end(), tree.roots(rank).begin(), tree.roots(rank).end());
    }
    FACET_CHECK(roots_.size() <= size_t{kTreeRootsMax}, "a tree of {} roots", roots_.size());
  }

  void Run(int leaves, TreeSum* sum) {
    sum->count = 0;
    Visit(0, leaves, sum);
  }

 private:
  void Visit(int begin, int end, TreeSum* sum) {
    if (roots_[static_cast<size_t>(sum->count)] == Subtree{begin, end}) {
      sum->merges[sum->count++] = 0;
      FACET_CHECK(++waiting_ <= kTreeLevelsMax, "a tree of more than {} levels", kTreeLevelsMax);
      return;
    }
    const int split = SplitPoint(begin, end);
    Visit(begin, split, sum);
    Visit(split, end, sum);
    ++sum->merges[sum->count - 1];
    --waiting_;
  }

  std::vector<Subtree> roots_;
  int waiting_ = 0;
};

}  // namespace

void ScheduleTree(const SumTree& tree, TreeSum* sum) { Scheduler(tree).Run(tree.leaves(), sum); }

}  // namespace facet::cuda
