#include "kernels/host/matrix_source.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "base/status.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

// Where a block of `type` keeps its half-precision scales and minima.
std::span<const int> ScaleOffsets(TensorType type) {
  static constexpr int kFirst[] = {0};
  static constexpr int kFirstTwo[] = {0, 2};
  static constexpr int kQ2K[] = {80, 82};
  static constexpr int kQ3K[] = {108};
  static constexpr int kQ6K[] = {208};
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
      return {};
    case TensorType::kQ4_0:
    case TensorType::kQ5_0:
    case TensorType::kQ8_0:
    case TensorType::kIQ4_NL:
    case TensorType::kIQ4_XS:
      return kFirst;
    case TensorType::kQ4_1:
    case TensorType::kQ5_1:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
      return kFirstTwo;
    case TensorType::kQ2_K:
      return kQ2K;
    case TensorType::kQ3_K:
      return kQ3K;
    case TensorType::kQ6_K:
      return kQ6K;
  }
  return {};
}

uint32_t HalfAt(const std::byte* from) {
  uint16_t half;
  std::memcpy(&half, from, sizeof(half));
  return half;
}

// Of `count` half-precision numbers at this stride; INT64_MAX if all are finite. The usual answer
// takes one pass without branches.
int64_t FirstNotFinite(const std::byte* from, int64_t stride, int64_t count) {
  uint32_t any = 0;  // the exponent of an infinity is all ones: one more carries over
  for (int64_t i = 0; i < count; ++i) any |= (HalfAt(from + i * stride) & 0x7c00u) + 0x0400u;
  if ((any & 0x8000u) == 0) return INT64_MAX;
  int64_t i = 0;
  while ((HalfAt(from + i * stride) & 0x7c00u) != 0x7c00u) ++i;
  return i;
}

absl::Status CheckCut(const MatrixSource& source, const LeafCut& cut) {
  const std::vector<int64_t>& starts = cut.starts;
  if (starts.size() < 2 || starts.front() != 0 || starts.back() != source.columns ||
      !std::is_sorted(starts.begin(), starts.end())) {
    return InvalidArgument("{}: leaves must cover the {} columns in order", source.name,
                           source.columns);
  }
  if (cut.first_leaf < 0 || cut.first_leaf + cut.leaves() > cut.leaves_total) {
    return InvalidArgument("{}: leaves [{}, {}) of {}", source.name, cut.first_leaf,
                           cut.first_leaf + cut.leaves(), cut.leaves_total);
  }
  const int64_t unit = LeafUnit(source.type);
  for (const int64_t start : std::span(starts).first(starts.size() - 1)) {
    if (start % unit != 0) {
      return InvalidArgument("{}: a leaf begins at column {}, inside a block of {}", source.name,
                             start, unit);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSource(const MatrixSource& source, const LeafCut* cut) {
  const BlockFormat* format = FindBlockFormat(source.type);
  if (format == nullptr) {
    return InvalidArgument("{}: type {} is not supported", source.name,
                           static_cast<uint32_t>(source.type));
  }
  if (source.data == nullptr || source.rows < 1 || source.columns < 1 ||
      source.columns % format->elements != 0) {
    return InvalidArgument("{}: {} x {} elements of {}", source.name, source.rows, source.columns,
                           format->name);
  }
  if (!source.row_order.empty() &&
      (static_cast<int64_t>(source.row_order.size()) != source.rows ||
       *std::min_element(source.row_order.begin(), source.row_order.end()) < 0)) {
    return InvalidArgument("{}: an order of {} rows for {}", source.name, source.row_order.size(),
                           source.rows);
  }
  return cut == nullptr ? absl::OkStatus() : CheckCut(source, *cut);
}

const std::byte* SourceRow(const MatrixSource& source, int64_t row) {
  const int64_t index =
      source.row_order.empty() ? row : int64_t{source.row_order[static_cast<size_t>(row)]};
  return source.data + index * source.row_stride;
}

absl::Status CheckScales(const MatrixSource& source, int64_t row) {
  const std::span<const int> offsets = ScaleOffsets(source.type);
  if (offsets.empty()) return absl::OkStatus();
  const BlockFormat& format = FormatOf(source.type);
  const int64_t blocks = source.columns / format.elements;
  int64_t bad = INT64_MAX;
  for (const int offset : offsets) {
    bad = std::min(bad, FirstNotFinite(SourceRow(source, row) + offset, format.bytes, blocks));
  }
  if (bad == INT64_MAX) return absl::OkStatus();
  return InvalidArgument("{}: row {} has a scale that is not finite (block {})", source.name,
                         source.first_row + row, bad);
}

LeafRoots MakeLeafRoots(int64_t columns, const LeafCut* cut) {
  if (cut == nullptr) return {{0, columns}, {0, 1}};
  LeafRoots result;
  result.starts = cut->starts;
  const int first = cut->first_leaf;
  for (const Subtree& root : RootsOf(cut->leaves_total, first, first + cut->leaves())) {
    result.root_begin.push_back(root.begin - first);
  }
  result.root_begin.push_back(cut->leaves());
  return result;
}

}  // namespace facet
