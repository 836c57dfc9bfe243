// Images of whole matrices: every slice that a rank takes from one is, byte for byte, what packing
// that slice by itself gives.

#include "kernels/cpu/packed_images.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "kernels/cpu/pack.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/processor.h"
#include "tests/kernels/test_data.h"

namespace facet {
namespace {

constexpr int kThreads = 3;

// All bands of an image, packed by several threads; checks that they are every byte of it once.
std::vector<std::byte> ImageOf(const MatrixSource& source, int64_t size) {
  const PackedImages images;
  const absl::StatusOr<ImageBands> bands = images.Bands(source);
  EXPECT_TRUE(bands.ok()) << bands.status();
  int64_t end = 0;
  for (const ImageBands::Plane& plane : bands->planes) {
    EXPECT_EQ(plane.offset, end);
    end += bands->count * plane.band_bytes;
  }
  EXPECT_EQ(end, size);
  std::vector<std::byte> image(static_cast<size_t>(size), std::byte{0xa5});  // all is overwritten
  ThreadPool pool(kThreads);
  pool.ParallelFor(bands->count, [&](int64_t band, int) {
    std::vector<std::byte*> out;
    for (const ImageBands::Plane& plane : bands->planes) {
      out.push_back(image.data() + plane.offset + band * plane.band_bytes);
    }
    EXPECT_TRUE(images.PackBand(source, band, out).ok());
  });
  return image;
}

// Whether each piece of every section lies in one band.
void ExpectPiecesAreInBands(const MatrixSource& source, const ImageCut& cut) {
  const PackedImages images;
  const ImageBands bands = *images.Bands(source);
  for (int section = 0; section < cut.sections(); ++section) {
    for (const ImagePiece& piece : images.Pieces(source, cut, section)) {
      const auto plane = std::ranges::find_if(bands.planes, [&](const ImageBands::Plane& one) {
        return piece.offset >= one.offset &&
               piece.offset < one.offset + bands.count * one.band_bytes;
      });
      ASSERT_NE(plane, bands.planes.end());
      EXPECT_EQ((piece.offset - plane->offset) / plane->band_bytes,
                (piece.offset + piece.size - 1 - plane->offset) / plane->band_bytes);
    }
  }
}

// The slice [from, to) of rows or columns, as a rank's loader asks for it.
MatrixSource SliceOf(const MatrixSource& whole, ImageCut::Axis axis, int64_t from, int64_t to) {
  MatrixSource slice = whole;
  if (axis == ImageCut::kRows) {
    slice.rows = to - from;
    slice.data += from * whole.row_stride;
  } else {
    slice.columns = to - from;
    slice.data += RowBytes(whole.type, from);
  }
  return slice;
}

void ExpectSame(const Matrix& a, const Matrix& b) {
  const auto& left = static_cast<const PackedMatrix&>(a);
  const auto& right = static_cast<const PackedMatrix&>(b);
  ASSERT_EQ(left.format(), right.format());
  ASSERT_EQ(left.rows(), right.rows());
  ASSERT_EQ(left.columns(), right.columns());
  ASSERT_EQ(left.packed_bytes(), right.packed_bytes());
  ASSERT_EQ(left.panel_bytes(), right.panel_bytes());
  ASSERT_EQ(left.low_bytes(), right.low_bytes());
  EXPECT_EQ(left.leaves().starts, right.leaves().starts);
  EXPECT_EQ(left.leaves().root_begin, right.leaves().root_begin);
  for (int64_t panel = 0; panel < left.panels(); ++panel) {
    ASSERT_EQ(
        std::memcmp(left.panel(panel), right.panel(panel), static_cast<size_t>(left.panel_bytes())),
        0)
        << "panel " << panel;
    if (left.low_bytes() == 0) continue;
    ASSERT_EQ(std::memcmp(left.low(panel), right.low(panel), static_cast<size_t>(left.low_bytes())),
              0)
        << "low bits of panel " << panel;
  }
}

void ExpectSlicesAreTheirOwnPackings(const MatrixSource& source, const ImageCut& cut) {
  const PackedImages images;
  const int64_t size = images.Size(source, cut);
  ASSERT_GT(size, 0);
  const std::vector<std::byte> image = ImageOf(source, size);
  ThreadPool pool(1);
  for (int begin = 0; begin < cut.sections(); ++begin) {
    for (int end = begin + 1; end <= cut.sections(); ++end) {
      const int64_t from = cut.starts[static_cast<size_t>(begin)];
      const int64_t to = cut.starts[static_cast<size_t>(end)];
      LeafCut leaves{.leaves_total = cut.sections(), .first_leaf = begin};
      for (int i = begin; i <= end; ++i) {
        leaves.starts.push_back(cut.starts[static_cast<size_t>(i)] - from);
      }
      const LeafCut* used = cut.axis == ImageCut::kColumns ? &leaves : nullptr;
      const auto loaded = images.Load(source, cut, begin, end, used, image.data());
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      const auto packed = PackedMatrix::Pack(SliceOf(source, cut.axis, from, to), used, &pool);
      ASSERT_TRUE(packed.ok()) << packed.status();
      SCOPED_TRACE(fmt::format("[{}, {})", from, to));
      ASSERT_NO_FATAL_FAILURE(ExpectSame(**loaded, **packed));
    }
  }
}

class PackedImagesTest : public ::testing::TestWithParam<TensorType> {};

TEST_P(PackedImagesTest, EverySliceOfRowsIsItsOwnPacking) {
  Random random(1);
  const TestMatrix matrix = MakeMatrix(GetParam(), 211, 512, 0.05f, random);
  for (const bool searched : {false, true}) {
    MatrixSource source = matrix.source();
    source.searched = searched;
    ExpectSlicesAreTheirOwnPackings(source, {ImageCut::kRows, {0, 32, 96, 160, 211}});
  }
}

TEST_P(PackedImagesTest, EverySliceOfColumnsIsItsOwnPacking) {
  Random random(2);
  const TestMatrix matrix = MakeMatrix(GetParam(), 75, 1024, 0.05f, random);
  ExpectSlicesAreTheirOwnPackings(matrix.source(), {ImageCut::kColumns, {0, 256, 512, 1024}});
}

// Every byte that a rank reads is in one of its pieces, and no byte is in two sections'.
TEST_P(PackedImagesTest, PiecesOfAllSectionsAreTheImage) {
  Random random(3);
  const PackedImages images;
  const TestMatrix matrix = MakeMatrix(GetParam(), 130, 1024, 0.05f, random);
  MatrixSource searched = matrix.source();
  searched.searched = true;
  const struct {
    MatrixSource source;
    ImageCut cut;
  } cases[] = {{matrix.source(), {ImageCut::kRows, {0, 64, 96, 130}}},
               {searched, {ImageCut::kRows, {0, 64, 96, 130}}},
               {matrix.source(), {ImageCut::kColumns, {0, 512, 768, 1024}}}};
  for (const auto& [source, cut] : cases) {
    const int64_t size = images.Size(source, cut);
    std::vector<uint8_t> covered(static_cast<size_t>(size));
    for (int section = 0; section < cut.sections(); ++section) {
      for (const ImagePiece& piece : images.Pieces(source, cut, section)) {
        ASSERT_LE(piece.offset + piece.size, size);
        for (int64_t i = 0; i < piece.size; ++i) ++covered[static_cast<size_t>(piece.offset + i)];
      }
    }
    EXPECT_EQ(std::count(covered.begin(), covered.end(), 1), size);
    ExpectPiecesAreInBands(source, cut);
  }
}

// A panel at a matrix's end, of each number of rows that it can have.
TEST_P(PackedImagesTest, EveryInstructionSetPacksTheSame) {
  if (!HasAvx512()) GTEST_SKIP() << "this processor has one form of the kernels only";
  Random random(8);
  const TestMatrix matrix = MakeMatrix(GetParam(), kPanelColumns, 768, 0.05f, random);
  for (const bool searched : {false, true}) {
    MatrixSource source = matrix.source();
    source.searched = searched;
    for (source.rows = 1; source.rows <= kPanelColumns; ++source.rows) {
      const PackedShape shape = PackedShape::Of(source);
      std::vector<std::byte> images[2];
      for (const bool wide : {false, true}) {
        std::vector<std::byte>& image = images[wide ? 1 : 0];
        image.resize(static_cast<size_t>(shape.bytes()));
        const absl::Status packed =
            PackPanel(source, 0, {image.data(), image.data() + shape.low_at(0)},
                      wide ? avx512::PackerOf : avx2::PackerOf);
        ASSERT_TRUE(packed.ok()) << packed;
      }
      EXPECT_EQ(images[0], images[1]) << source.rows << " rows";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, PackedImagesTest, ::testing::ValuesIn(AllTensorTypes()),
                         [](const auto& info) { return std::string(FormatOf(info.param).name); });

TEST(PackedImages, OrderedRowsAreSlicedAsTheyAreOrdered) {
  Random random(4);
  TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 128, 64, 0.05f, random);
  for (int i = 0; i < 128; ++i) matrix.row_order.push_back(i / 32 * 32 + (i * 5) % 32);
  const PackedImages images;
  const ImageCut cut{ImageCut::kRows, {0, 32, 128}};
  const std::vector<std::byte> image = ImageOf(matrix.source(), images.Size(matrix.source(), cut));
  const auto loaded = images.Load(matrix.source(), cut, 1, 2, nullptr, image.data());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  MatrixSource slice = SliceOf(matrix.source(), ImageCut::kRows, 32, 128);
  std::vector<int32_t> order(matrix.row_order.begin(), matrix.row_order.begin() + 96);
  slice.row_order = order;
  ThreadPool pool(1);
  const auto packed = PackedMatrix::Pack(slice, nullptr, &pool);
  ASSERT_TRUE(packed.ok()) << packed.status();
  ExpectSame(**loaded, **packed);
}

TEST(PackedImages, SectionsInsideAPanelOrABlockAreNoImage) {
  Random random(5);
  const PackedImages images;
  const TestMatrix legacy = MakeMatrix(TensorType::kQ4_0, 96, 512, 0.05f, random);
  const TestMatrix super = MakeMatrix(TensorType::kQ4_K, 96, 512, 0.05f, random);
  EXPECT_EQ(images.Size(legacy.source(), {ImageCut::kRows, {0, 48, 96}}), 0);
  EXPECT_GT(images.Size(legacy.source(), {ImageCut::kColumns, {0, 32, 512}}), 0);
  EXPECT_EQ(images.Size(super.source(), {ImageCut::kColumns, {0, 32, 512}}), 0);
  EXPECT_GT(images.Size(super.source(), {ImageCut::kColumns, {0, 256, 512}}), 0);
}

TEST(PackedImages, WhatCannotBePackedIsSaid) {
  Random random(6);
  TestMatrix matrix = MakeMatrix(TensorType::kQ8_0, 4096, 64, 0.05f, random);
  PoisonScale(&matrix, 77, 1, 0);
  const PackedImages images;
  std::vector<std::byte> panel(size_t{32} * 68);
  std::byte* const out[] = {panel.data()};
  EXPECT_TRUE(images.PackBand(matrix.source(), 1, out).ok());
  const absl::Status status = images.PackBand(matrix.source(), 2, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(MessageOf(status).find("row 77"), std::string::npos) << status;
  MatrixSource odd = matrix.source();
  odd.columns = 63;
  EXPECT_EQ(images.Bands(odd).status().code(), absl::StatusCode::kInvalidArgument);
}

// Files of images outlive the program that wrote them. If this fails, the packing has changed:
// count kPackingVersion (packed_images.cc) up, and then write down the new sum here.
TEST(PackedImages, BytesAreThoseOfTheirVersion) {
  std::mt19937_64 random(7);
  uint64_t sum = 0;
  for (const TensorType type : AllTensorTypes()) {
    TestMatrix matrix{"golden", type, 40, 512, {}, {}};
    matrix.bytes.resize(static_cast<size_t>(matrix.rows * RowBytes(type, matrix.columns)));
    // No half-precision number of such bytes is infinite.
    for (std::byte& byte : matrix.bytes) byte = static_cast<std::byte>(random() & 0xbf);
    for (const bool searched : {false, true}) {
      MatrixSource source = matrix.source();
      source.searched = searched;
      const std::vector<std::byte> image =
          ImageOf(source, PackedImages().Size(source, {ImageCut::kRows, {0, 40}}));
      sum = XXH3_64bits_withSeed(image.data(), image.size(), sum);
    }
  }
  EXPECT_EQ(PackedImages().form(), "cpu-panels-2");
  EXPECT_EQ(sum, 401558162620280731u);
}

}  // namespace
}  // namespace facet
