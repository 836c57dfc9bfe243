#include "shard_worker/model/image_sums.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/packed_file.h"
#include "tests/model/striped_images.h"

namespace facet {
namespace {

using testing::StripedImages;

constexpr int64_t kOffset = 64;  // of the image in the file's data

// The sums of an image of two sections, which have a band and so two pieces each.
class ImageSumsTest : public ::testing::Test {
 protected:
  ImageSumsTest() : sums_(images_, source_, cut_, kOffset) {}

  void Add(const ImagePiece& piece) { sums_.Add(piece.offset, BytesOf(piece)); }
  std::span<const std::byte> BytesOf(const ImagePiece& piece) const {
    return std::span(bytes_).subspan(static_cast<size_t>(piece.offset),
                                     static_cast<size_t>(piece.size));
  }
  std::vector<ImagePiece> Pieces(int section) const {
    return images_.Pieces(source_, cut_, section);
  }

  const StripedImages images_;
  const MatrixSource source_ = {.rows = 2};
  const ImageCut cut_ = {.starts = {0, 1, 2}};
  const std::vector<std::byte> bytes_ =
      std::vector<std::byte>(static_cast<size_t>(images_.Size(source_, cut_)), std::byte{7});
  ImageSums sums_;
};

TEST_F(ImageSumsTest, PiecesMayComeInAnyOrder) {
  std::vector<uint64_t> expected;
  for (int section = 0; section < cut_.sections(); ++section) {
    expected.push_back(0);
    for (const ImagePiece& piece : Pieces(section)) {
      expected.back() += PieceChecksum(kOffset + piece.offset, BytesOf(piece));
    }
  }
  for (int section = cut_.sections() - 1; section >= 0; --section) {
    for (const ImagePiece& piece : Pieces(section)) Add(piece);
  }
  EXPECT_EQ(sums_.Take(), expected);
}

TEST_F(ImageSumsTest, HalfAPieceIsABug) {
  ImagePiece half = Pieces(0)[0];
  half.size /= 2;
  EXPECT_DEATH(Add(half), "a piece is written in parts");
}

TEST_F(ImageSumsTest, SumsBeforeTheLastPieceAreABug) {
  for (const ImagePiece& piece : Pieces(0)) Add(piece);
  Add(Pieces(1)[0]);
  EXPECT_DEATH(sums_.Take(), "3 of 4 pieces");
}

}  // namespace
}  // namespace facet
