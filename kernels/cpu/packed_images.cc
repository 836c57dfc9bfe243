#include "kernels/cpu/packed_images.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {
namespace {

// The version of what PackPanel() writes for any source. packed_images_test.cc fails when the bytes
// change and this does not.
constexpr int kPackingVersion = 2;
// A thread packs at most this much before it is written: it stays in the second-level cache.
constexpr int64_t kChunkBytes = 512 << 10;
// All threads get so many chunks of a matrix, however small it is.
constexpr int64_t kChunksPerThread = 2;

// Whether sections that begin at `start` can be used by themselves.
bool Separable(const PackedShape& shape, ImageCut::Axis axis, int64_t start) {
  if (axis == ImageCut::kRows) return start % kPanelColumns == 0;
  if (IsSplit(shape.format)) return false;
  const PackedLayout layout = LayoutOf(shape.format);
  return layout.is_float || start % (kBlockColumns * layout.super_blocks) == 0;
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
    const int64_t first = PanelsBefore(begin);
    const int64_t count = PanelsBefore(end) - first;
    pieces.push_back({shape.panel_at(first), count * shape.panel_bytes});
    if (shape.low_bytes > 0) pieces.push_back({shape.low_at(first), count * shape.low_bytes});
    return pieces;
  }
  const int64_t offset = PanelBytes(shape.format, begin);
  const int64_t size = PanelBytes(shape.format, end) - offset;
  for (int64_t panel = 0; panel < shape.panels; ++panel) {
    pieces.push_back({shape.panel_at(panel) + offset, size});
  }
  return pieces;
}

absl::Status PackedImages::Pack(const MatrixSource& source, ThreadPool* pool,
                                const Write& write) const {
  FACET_RETURN_IF_ERROR(CheckSource(source, nullptr));
  const PackedShape shape = PackedShape::Of(source);
  const int64_t both = shape.panel_bytes + shape.low_bytes;
  const int64_t chunk = std::min(kChunkBytes, shape.bytes() / (kChunksPerThread * pool->threads()));
  const int64_t step = std::clamp<int64_t>(chunk / both, 1, shape.panels);
  std::vector<AlignedBuffer> scratch(static_cast<size_t>(pool->threads()));
  for (AlignedBuffer& buffer : scratch) {
    FACET_ASSIGN_OR_RETURN(buffer, AlignedBuffer::Make(static_cast<size_t>(step * both)));
  }
  const auto pack = [&](int64_t first, std::byte* bytes) -> absl::Status {
    const int64_t count = std::min(step, shape.panels - first);
    std::byte* low = bytes + count * shape.panel_bytes;
    std::memset(bytes, 0, static_cast<size_t>(count * both));
    for (int64_t i = 0; i < count; ++i) {
      FACET_RETURN_IF_ERROR(
          PackPanel(source, first + i, {bytes + i * shape.panel_bytes, low + i * shape.low_bytes}));
    }
    FACET_RETURN_IF_ERROR(write(shape.panel_at(first), {bytes, low}));
    if (shape.low_bytes == 0) return absl::OkStatus();
    return write(shape.low_at(first), {low, low + count * shape.low_bytes});
  };
  FirstFailure failure(pool->threads());
  pool->ParallelFor((shape.panels + step - 1) / step, [&](int64_t task, int thread) {
    if (failure.Seen(thread)) return;
    failure.Note(thread, task, pack(task * step, scratch[static_cast<size_t>(thread)].data()));
  });
  return failure.Take();
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
