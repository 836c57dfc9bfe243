#ifndef FACET_KERNELS_SUM_TREE_H_
#define FACET_KERNELS_SUM_TREE_H_

// The one order in which the leaves of a row-parallel product are added, whatever the
// tensor-parallel degree: a binary tree over leaf indices. The node over [begin, end) splits at
// begin + the largest power of two below end - begin, so every node starts at a multiple of its
// size rounded up to a power of two. A rank owns a contiguous range of leaves and reduces it to
// the roots of the maximal subtrees inside its range; the ranks together finish the tree.

#include <cstdint>
#include <span>
#include <vector>

namespace facet {

// The node over leaves [begin, end).
struct Subtree {
  int begin = 0;
  int end = 0;
  friend bool operator==(const Subtree&, const Subtree&) = default;
};

// The split point of the node over [begin, end). REQUIRES: end - begin >= 2.
int SplitPoint(int begin, int end);

// The maximal subtrees of the tree over [0, leaves) that lie inside [begin, end), left to right.
std::vector<Subtree> RootsOf(int leaves, int begin, int end);

// The schedule that finishes a tree from roots that together cover it.
class SumTree {
 public:
  // `rank_begin` has world + 1 ascending entries from 0 to leaves: rank r owns leaves
  // [rank_begin[r], rank_begin[r + 1]), possibly none.
  SumTree(int leaves, std::vector<int> rank_begin);

  int leaves() const { return leaves_; }
  int world() const { return static_cast<int>(rank_begin_.size()) - 1; }
  const std::vector<int>& rank_begin() const { return rank_begin_; }
  // The roots rank `rank` contributes, left to right.
  const std::vector<Subtree>& roots(int rank) const { return roots_[rank]; }
  int root_count(int rank) const { return static_cast<int>(roots_[rank].size()); }

  // out[i] = the tree's sum over element i. `roots` holds the roots of all ranks, left to right,
  // each at its own address with `elements` floats. `out` may alias none of them. One rank that
  // owns single leaves may use it, too: a node's shape depends on its size only.
  // Thread-safe; bound by memory, so callers split `elements` over threads if at all.
  void Finish(std::span<const float* const> roots, int64_t elements, float* out) const;

 private:
  // values[out] = values[left] + values[right]. The values are the roots, left to right, and
  // after them the intermediate sums that are alive at once, at most one per level of the tree.
  struct Add {
    int left;
    int right;
    int out;
  };

  // Appends the adds of the node over [begin, end) and returns which value holds its sum.
  // `next_root` is the first root not yet used, `depth` the number of intermediate sums alive.
  int Schedule(int begin, int end, std::span<const Subtree> all, int* next_root, int depth);

  int leaves_;
  std::vector<int> rank_begin_;
  std::vector<std::vector<Subtree>> roots_;
  std::vector<Add> adds_;
};

}  // namespace facet

#endif  // FACET_KERNELS_SUM_TREE_H_
