#include "kernels/sum_tree.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"

namespace facet {
namespace {

// Intermediate sums are made this many elements at a time, so that all of a tree's levels (five
// for 32 roots) stay in the first-level cache.
constexpr int64_t kChunk = 512;
// The depth of a tree over as many leaves as an int can count.
constexpr int kMaxDepth = 31;

void AddRows(const float* __restrict left, const float* __restrict right, int64_t elements,
             float* __restrict out) {
  for (int64_t i = 0; i < elements; ++i) out[i] = left[i] + right[i];
}

// A left child's sum may be overwritten by its parent's.
void AddTo(float* __restrict left, const float* __restrict right, int64_t elements) {
  for (int64_t i = 0; i < elements; ++i) left[i] += right[i];
}

void CollectRoots(int node_begin, int node_end, int begin, int end, std::vector<Subtree>* roots) {
  if (node_end <= begin || end <= node_begin) return;
  if (begin <= node_begin && node_end <= end) {
    roots->push_back({node_begin, node_end});
    return;
  }
  const int split = SplitPoint(node_begin, node_end);
  CollectRoots(node_begin, split, begin, end, roots);
  CollectRoots(split, node_end, begin, end, roots);
}

}  // namespace

int SplitPoint(int begin, int end) {
  FACET_CHECK(end - begin >= 2, "node [{}, {})", begin, end);
  return begin + static_cast<int>(std::bit_floor(static_cast<unsigned>(end - begin - 1)));
}

std::vector<Subtree> RootsOf(int leaves, int begin, int end) {
  std::vector<Subtree> roots;
  CollectRoots(0, leaves, begin, end, &roots);
  return roots;
}

SumTree::SumTree(int leaves, std::vector<int> rank_begin)
    : leaves_(leaves), rank_begin_(std::move(rank_begin)) {
  FACET_CHECK(leaves_ >= 1 && rank_begin_.size() >= 2, "{} leaves", leaves_);
  FACET_CHECK(rank_begin_.front() == 0 && rank_begin_.back() == leaves_ &&
                  std::is_sorted(rank_begin_.begin(), rank_begin_.end()),
              "ranks must own [0, {}) in ascending ranges", leaves_);
  std::vector<Subtree> all;
  for (int rank = 0; rank < world(); ++rank) {
    roots_.push_back(RootsOf(leaves_, rank_begin_[rank], rank_begin_[rank + 1]));
    all.insert(all.end(), roots_.back().begin(), roots_.back().end());
  }
  int next_root = 0;
  Schedule(0, leaves_, all, &next_root, 0);
  FACET_CHECK(next_root == static_cast<int>(all.size()));
}

int SumTree::Schedule(int begin, int end, std::span<const Subtree> all, int* next_root, int depth) {
  if (all[*next_root] == Subtree{begin, end}) return (*next_root)++;
  const int roots = static_cast<int>(all.size());
  const int split = SplitPoint(begin, end);
  const int left = Schedule(begin, split, all, next_root, depth);
  const int left_alive = left < roots ? 0 : 1;
  const int right = Schedule(split, end, all, next_root, depth + left_alive);
  // The left sum's place if it has one; otherwise the first free one, which may be the right's.
  const int out = roots + depth;
  adds_.push_back({left, right, out});
  return out;
}

void SumTree::Finish(std::span<const float* const> roots, int64_t elements, float* out) const {
  const size_t count = adds_.size() + 1;
  FACET_CHECK(roots.size() == count, "{} roots given, the tree has {}", roots.size(), count);
  if (elements == 0) return;
  if (adds_.empty()) {
    std::memcpy(out, roots[0], static_cast<size_t>(elements) * sizeof(float));
    return;
  }
  alignas(64) float sums[kMaxDepth][kChunk];
  for (int64_t begin = 0; begin < elements; begin += kChunk) {
    const int64_t length = std::min(kChunk, elements - begin);
    const auto value = [&](int index) {
      const size_t i = static_cast<size_t>(index);
      return i < count ? roots[i] + begin : static_cast<const float*>(sums[i - count]);
    };
    for (const Add& add : adds_) {
      const bool last = &add == &adds_.back();
      float* sum = last ? out + begin : sums[static_cast<size_t>(add.out) - count];
      if (sum == value(add.left)) {
        AddTo(sum, value(add.right), length);
      } else if (sum == value(add.right)) {
        AddTo(sum, value(add.left), length);  // IEEE addition commutes
      } else {
        AddRows(value(add.left), value(add.right), length, sum);
      }
    }
  }
}

}  // namespace facet
