#include "shard_worker/model/image_packer.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/base/temp_folder.h"
#include "tests/model/striped_images.h"

namespace facet {
namespace {

using testing::kPlaneBytes;
using testing::StripedImages;
using testing::TempFolder;

constexpr int kThreads = 3;
constexpr int64_t kRowBytes = 40'000;  // in the file: a run takes several reads
constexpr int64_t kImageRows = 1000;   // of any image, at most

class ImagePackerTest : public ::testing::Test {
 protected:
  // Image after image, with holes between them.
  void SetUp() override {
    AddImage("a", 400, true);  // four runs, large pages
    AddImage("b", 7, false);
    AddImage("c", 1, false);
    AddImage("d", 130, false);
    for (int32_t row = 0; row < 130; ++row) order_.push_back(row / 10 * 10 + 9 - row % 10);
    todo_.back().source.row_order = order_;
    spec_.key = "images";
    descriptor_ = ::open(folder_.File("file").c_str(), O_RDWR | O_CREAT, 0600);
  }
  void TearDown() override { ::close(descriptor_); }

  void AddImage(const char* name, int64_t rows, bool large_pages) {
    MatrixSource source;
    source.name = name;
    source.rows = rows;
    source.row_stride = kRowBytes;
    ImageCut& cut = cuts_.emplace_back();
    for (int64_t row = 0; row < rows; row += 2) cut.starts.push_back(row);
    cut.starts.push_back(rows);
    const int64_t size = images_.Size(source, cut);
    todo_.push_back({source, &cut, spec_.data_bytes, size, large_pages});
    spec_.data_bytes += size + 1234;
    spec_.sections += cut.sections();
  }

  // The number that is an image's row in the file.
  static int64_t NumberOf(size_t image, int64_t row) {
    return static_cast<int64_t>(image) * kImageRows + row;
  }
  // Reads rows of the images, as if they were in a file.
  PackingCalls Calls() {
    return {.read = [](size_t image, int64_t offset, std::span<std::byte> to) {
      EXPECT_EQ(offset % kRowBytes, 0);
      for (int64_t at = 0; at < static_cast<int64_t>(to.size()); at += kRowBytes) {
        const int64_t number = NumberOf(image, (offset + at) / kRowBytes);
        std::memcpy(to.data() + at, &number, sizeof(number));
      }
      return absl::OkStatus();
    }};
  }

  absl::Status Pack(const PackingCalls& calls) {
    FACET_ASSIGN_OR_RETURN(const PackedFileWriter writer,
                           PackedFileWriter::Create(descriptor_, spec_));
    ThreadPool pool(kThreads);
    FACET_ASSIGN_OR_RETURN(const std::vector<uint64_t> sums,
                           PackImages(images_, todo_, writer, &pool, calls));
    return writer.Finish(sums);
  }

  TempFolder folder_;
  StripedImages images_;
  std::deque<ImageCut> cuts_;
  std::vector<int32_t> order_;
  std::vector<ImageToPack> todo_;
  PackedFileSpec spec_;
  int descriptor_ = -1;
};

TEST_F(ImagePackerTest, EveryByteAndEverySumIsInItsPlace) {
  ASSERT_TRUE(Pack(Calls()).ok());
  const auto file = PackedFile::Open(folder_.File("file"), spec_);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto bytes_at = [&](int64_t offset, int64_t size) {
    return file->data().subspan(static_cast<size_t>(offset), static_cast<size_t>(size));
  };
  int64_t section = 0;
  for (size_t index = 0; index < todo_.size(); ++index) {
    const ImageToPack& image = todo_[index];
    const ImageBands bands = *images_.Bands(image.source);
    for (int64_t band = 0; band < bands.count; ++band) {
      const auto& order = image.source.row_order;
      const int64_t number =
          NumberOf(index, order.empty() ? band : order[static_cast<size_t>(band)]);
      for (size_t plane = 0; plane < 2; ++plane) {
        const auto& [offset, size] = bands.planes[plane];
        const auto bytes = bytes_at(image.offset + offset + band * size, size);
        for (int64_t i = 0; i < size; ++i) {
          ASSERT_EQ(bytes[static_cast<size_t>(i)], StripedImages::ByteOf(number, plane, i))
              << image.source.name << " band " << band << " plane " << plane << " byte " << i;
        }
      }
    }
    for (int i = 0; i < image.cut->sections(); ++i, ++section) {
      uint64_t sum = 0;
      for (const ImagePiece& piece : images_.Pieces(image.source, *image.cut, i)) {
        const int64_t offset = image.offset + piece.offset;
        sum += PieceChecksum(offset, bytes_at(offset, piece.size));
      }
      EXPECT_EQ(file->checksum(section), sum) << image.source.name << " section " << i;
    }
  }
}

TEST_F(ImagePackerTest, SaysWhatItWrote) {
  std::atomic<int64_t> wrote = 0;
  PackingCalls calls = Calls();
  calls.wrote = [&](int64_t bytes) { wrote += bytes; };
  ASSERT_TRUE(Pack(calls).ok());
  int64_t bytes = 0;
  for (const ImageToPack& image : todo_) bytes += image.size;
  EXPECT_EQ(wrote, bytes);
}

TEST_F(ImagePackerTest, TheFirstErrorInTheOrderOfTheImagesIsTheOneThatIsSaid) {
  images_.MakeBad(NumberOf(0, 131));
  images_.MakeBad(NumberOf(0, 300));
  images_.MakeBad(NumberOf(1, 5));
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(MessageOf(Pack(Calls())), "a: row 131 is bad");
  }
}

TEST_F(ImagePackerTest, WhatCannotBeReadIsAnError) {
  const auto read = Calls().read;
  const absl::Status status =
      Pack({.read = [&](size_t image, int64_t offset, std::span<std::byte> to) {
        if (image == 2) return Unavailable("the file has shrunk");
        return read(image, offset, to);
      }});
  EXPECT_EQ(MessageOf(status), "the file has shrunk");
}

TEST_F(ImagePackerTest, WhatCannotBeWrittenIsAnError) {
  const auto writer = PackedFileWriter::Create(descriptor_, spec_);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const int read_only = ::open(folder_.File("file").c_str(), O_RDONLY);
  ASSERT_EQ(::dup2(read_only, descriptor_), descriptor_);
  ::close(read_only);
  ThreadPool pool(kThreads);
  const auto sums = PackImages(images_, todo_, *writer, &pool, Calls());
  EXPECT_NE(MessageOf(sums.status()).find("writing packed weights"), std::string::npos)
      << sums.status();
}

}  // namespace
}  // namespace facet
