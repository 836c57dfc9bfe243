#ifndef FACET_KERNELS_CPU_PACKED_IMAGES_H_
#define FACET_KERNELS_CPU_PACKED_IMAGES_H_

#include "kernels/matrix_images.h"

namespace facet {

// Images in packed panels (packed_format.h): all panels, and behind them the low bits of all panels
// of a split format. The same bytes for AVX2 and AVX-512. A section of rows is whole panels, a
// section of columns the same part of every panel, a band one panel.
class PackedImages final : public MatrixImages {
 public:
  std::string form() const override;
  int64_t Size(const MatrixSource& source, const ImageCut& cut) const override;
  std::vector<ImagePiece> Pieces(const MatrixSource& source, const ImageCut& cut,
                                 int section) const override;
  absl::StatusOr<ImageBands> Bands(const MatrixSource& source) const override;
  absl::Status PackBand(const MatrixSource& source, int64_t band,
                        std::span<std::byte* const> out) const override;
  absl::StatusOr<std::unique_ptr<Matrix>> Load(const MatrixSource& source, const ImageCut& cut,
                                               int begin, int end, const LeafCut* leaves,
                                               const std::byte* image) const override;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_PACKED_IMAGES_H_
