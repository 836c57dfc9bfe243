#include "shard_worker/model/image_sums.h"

#include <algorithm>

#include "base/check.h"
#include "checkpoint/packed_file.h"

namespace facet {

ImageSums::ImageSums(const MatrixImages& images, const MatrixSource& source, const ImageCut& cut,
                     int64_t offset)
    : image_offset_(offset), sums_(static_cast<size_t>(cut.sections())) {
  for (int section = 0; section < cut.sections(); ++section) {
    for (const ImagePiece& piece : images.Pieces(source, cut, section)) {
      pieces_.push_back({piece.offset, piece.size, section});
    }
  }
  std::ranges::sort(pieces_, {}, &Piece::offset);
}

void ImageSums::Add(int64_t offset, std::span<const std::byte> bytes) {
  const int64_t end = offset + static_cast<int64_t>(bytes.size());
  auto piece = std::ranges::lower_bound(pieces_, offset, {}, &Piece::offset);
  size_t added = 0;
  for (; piece != pieces_.end() && piece->offset < end; ++piece, ++added) {
    FACET_CHECK(piece->offset + piece->size <= end, "a piece is written in parts");
    const auto inside = bytes.subspan(static_cast<size_t>(piece->offset - offset),
                                      static_cast<size_t>(piece->size));
    sums_[static_cast<size_t>(piece->section)] +=
        PieceChecksum(image_offset_ + piece->offset, inside);
  }
  added_ += added;
}

std::vector<uint64_t> ImageSums::Take() const {
  FACET_CHECK(added_ == pieces_.size(), "{} of {} pieces", added_.load(), pieces_.size());
  return {sums_.begin(), sums_.end()};
}

}  // namespace facet
