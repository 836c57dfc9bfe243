#ifndef FACET_TESTS_MODEL_STRIPED_IMAGES_H_
#define FACET_TESTS_MODEL_STRIPED_IMAGES_H_

#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/matrix_images.h"

namespace facet::testing {

inline constexpr int64_t kPlaneBytes[] = {70'000, 3'000};  // of a band

// Images of two planes with a band per row, and a section per two bands. A row is a number, which
// decides what its band packs.
class StripedImages final : public MatrixImages {
 public:
  std::string form() const override { return "striped"; }
  int64_t Size(const MatrixSource& source, const ImageCut&) const override {
    return source.rows * (kPlaneBytes[0] + kPlaneBytes[1]);
  }
  std::vector<ImagePiece> Pieces(const MatrixSource& source, const ImageCut& cut,
                                 int section) const override {
    std::vector<ImagePiece> pieces;
    for (int64_t band = cut.starts[section]; band < cut.starts[section + 1]; ++band) {
      pieces.push_back({band * kPlaneBytes[0], kPlaneBytes[0]});
      pieces.push_back({source.rows * kPlaneBytes[0] + band * kPlaneBytes[1], kPlaneBytes[1]});
    }
    return pieces;
  }
  absl::StatusOr<ImageBands> Bands(const MatrixSource& source) const override {
    return ImageBands{
        source.rows, 1, {{0, kPlaneBytes[0]}, {source.rows * kPlaneBytes[0], kPlaneBytes[1]}}};
  }
  absl::Status PackBand(const MatrixSource& source, int64_t band,
                        std::span<std::byte* const> out) const override {
    const int64_t row =
        source.row_order.empty() ? band : source.row_order[static_cast<size_t>(band)];
    int64_t number;
    std::memcpy(&number, source.data + row * source.row_stride, sizeof(number));
    if (bad_.contains(number)) {
      return InvalidArgument("{}: row {} is bad", source.name, source.first_row + band);
    }
    for (size_t plane = 0; plane < 2; ++plane) {
      for (int64_t i = 0; i < kPlaneBytes[plane]; ++i) out[plane][i] = ByteOf(number, plane, i);
    }
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Matrix>> Load(const MatrixSource&, const ImageCut&, int, int,
                                               const LeafCut*, const std::byte*) const override {
    return Unimplemented("nobody loads them");
  }

  void MakeBad(int64_t number) { bad_.insert(number); }
  static std::byte ByteOf(int64_t number, size_t plane, int64_t i) {
    return static_cast<std::byte>(Mix64(plane, static_cast<uint64_t>(number)) >> (i % 50));
  }

 private:
  std::set<int64_t> bad_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_MODEL_STRIPED_IMAGES_H_
