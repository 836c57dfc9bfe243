#include "kernels/cpu/packed_images.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_matrix.h"

namespace facet {
namespace {

// The version of what PackPanel() writes for any source. packed_images_test.cc fails when the bytes
// change and this does not.
constexpr int kPackingVersion = 2;

// Whether sections that begin at `start` can be used by themselves.
bool Separable(const PackedShape& shape, ImageCut::Axis axis, int64_t start) {
  if (axis == ImageCut::kRows) return start % kPanelColumns == 0;
  if (IsSplit(shape.format)) return false;
  const PackedLayout layout = LayoutOf(shape.format);
  if (layout.is_float) return shape.format != PackedFormat::kBF16 || start % 2 == 0;
  return start % (kBlockColumns * layout.super_blocks) == 0;
}

int64_t PanelsBefore(int64_t row) { return (row + kPanelColumns - 1) / kPanelColumns; }

}  // namespace

std::string PackedImages::form() const { return fmt::format("cpu-panels-{}", kPackingVersion); }

int64_t PackedImages::Size(const MatrixSource& source, const ImageCut& cut) const {
  const PackedShape shape = PackedShape::Of(source);
  const bool separable = std::all_of(cut.starts.begin(), cut.starts.end() - 1, [&](int64_t start) {
    return Separable(shape, cut.axis, start);
  });
  return separable ? shape.bytes() : 0;
}

std::vector<ImagePiece> PackedImages::Pieces(const MatrixSource& source, const ImageCut& cut,
                                             int section) const {
  const PackedShape shape = PackedShape::Of(source);
  const int64_t begin = cut.starts[static_cast<size_t>(section)];
  const int64_t end = cut.starts[static_cast<size_t>(section) + 1];
  std::vector<ImagePiece> pieces;
  if (cut.axis == ImageCut::kRows) {
    for (int64_t panel = PanelsBefore(begin); panel < PanelsBefore(end); ++panel) {
      pieces.push_back({shape.panel_at(panel), shape.panel_bytes});
      if (shape.low_bytes > 0) pieces.push_back({shape.low_at(panel), shape.low_bytes});
    }
    return pieces;
  }
  const int64_t offset = PanelBytes(shape.format, begin);
  const int64_t size = PanelBytes(shape.format, end) - offset;
  for (int64_t panel = 0; panel < shape.panels; ++panel) {
    pieces.push_back({shape.panel_at(panel) + offset, size});
  }
  return pieces;
}

absl::StatusOr<ImageBands> PackedImages::Bands(const MatrixSource& source) const {
  FACET_RETURN_IF_ERROR(CheckSource(source, nullptr));
  const PackedShape shape = PackedShape::Of(source);
  ImageBands bands{.count = shape.panels, .rows = kPanelColumns};
  bands.planes.push_back({shape.panel_at(0), shape.panel_bytes});
  if (shape.low_bytes > 0) bands.planes.push_back({shape.low_at(0), shape.low_bytes});
  return bands;
}

absl::Status PackedImages::PackBand(const MatrixSource& source, int64_t band,
                                    std::span<std::byte* const> out) const {
  const PackedShape shape = PackedShape::Of(source);
  PanelAt<std::byte> to{.panel = out[0]};
  std::memset(to.panel, 0, static_cast<size_t>(shape.panel_bytes));
  if (shape.low_bytes > 0) {
    to.low = out[1];
    std::memset(to.low, 0, static_cast<size_t>(shape.low_bytes));
  }
  return PackPanel(source, band, to);
}

absl::StatusOr<std::unique_ptr<Matrix>> PackedImages::Load(const MatrixSource& source,
                                                           const ImageCut& cut, int begin, int end,
                                                           const LeafCut* leaves,
                                                           const std::byte* image) const {
  FACET_RETURN_IF_ERROR(CheckSource(source, nullptr));
  const int64_t from = cut.starts[static_cast<size_t>(begin)];
  const int64_t to = cut.starts[static_cast<size_t>(end)];
  const PackedShape shape = PackedShape::Of(source);
  if (cut.axis == ImageCut::kRows) {
    FACET_CHECK(leaves == nullptr);
    const int64_t first = PanelsBefore(from);
    return std::make_unique<PackedMatrix>(
        shape.format, to - from, source.columns, MakeLeafRoots(source.columns, nullptr),
        PanelStream{image + shape.panel_at(first), shape.panel_bytes, shape.panel_bytes},
        PanelStream{image + shape.low_at(first), shape.low_bytes, shape.low_bytes});
  }
  const int64_t offset = PanelBytes(shape.format, from);
  const int64_t bytes = PanelBytes(shape.format, to) - offset;
  return std::make_unique<PackedMatrix>(
      shape.format, source.rows, to - from, MakeLeafRoots(to - from, leaves),
      PanelStream{image + offset, bytes, shape.panel_bytes}, PanelStream{});
}

}  // namespace facet
