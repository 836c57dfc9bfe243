#include "checkpoint/packed_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/thread_pool.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

using ::testing::HasSubstr;
using testing::TempFolder;

const PackedFileSpec kSpec = {.key = "model 1\n", .sections = 3, .data_bytes = 3000};

std::vector<std::byte> Bytes(size_t size, int seed) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(i * 7 + seed);
  return bytes;
}

// A finished file with data of kSpec.
std::string WriteFile(const TempFolder& folder, const PackedFileSpec& spec = kSpec) {
  std::string path = folder.File("file");
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC, 0600);
  const auto writer = PackedFileWriter::Create(descriptor, spec);
  EXPECT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::byte> data = Bytes(static_cast<size_t>(spec.data_bytes), 1);
  EXPECT_TRUE(writer->Write(1000, std::span(data).subspan(1000)).ok());
  EXPECT_TRUE(writer->Write(0, std::span(data).first(1000)).ok());
  const std::vector<uint64_t> checksums(static_cast<size_t>(spec.sections), 77);
  EXPECT_TRUE(writer->Finish(checksums).ok());
  ::close(descriptor);
  return path;
}

void Overwrite(const std::string& path, int64_t at, std::string_view text) {
  const int descriptor = ::open(path.c_str(), O_WRONLY);
  EXPECT_EQ(::pwrite(descriptor, text.data(), text.size(), at), static_cast<ssize_t>(text.size()));
  ::close(descriptor);
}

// Why the file is refused.
std::string WhyNot(const std::string& path, const PackedFileSpec& spec = kSpec) {
  const auto file = PackedFile::Open(path, spec);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kFailedPrecondition);
  return MessageOf(file.status());
}

TEST(PackedFile, GivesBackWhatWasWritten) {
  TempFolder folder;
  const auto file = PackedFile::Open(WriteFile(folder), kSpec);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(std::ranges::equal(file->data(), Bytes(3000, 1)));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(file->checksum(i), 77u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(file->data().data()) % 4096, 0u);
  PackedFile::Populate(file->data().subspan(5, 900));
}

TEST(PackedFile, OutlivesItsNameAndMoves) {
  TempFolder folder;
  auto file = PackedFile::Open(WriteFile(folder), kSpec);
  ASSERT_TRUE(file.ok()) << file.status();
  std::filesystem::remove(folder.File("file"));
  PackedFile moved;
  EXPECT_FALSE(moved);
  moved = *std::move(file);
  EXPECT_TRUE(moved);
  EXPECT_TRUE(std::ranges::equal(moved.data(), Bytes(3000, 1)));
}

TEST(PackedFile, AnAbsentFileIsNotFound) {
  TempFolder folder;
  EXPECT_EQ(PackedFile::Open(folder.File("none"), kSpec).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(PackedFile, AFileOfSomethingElseIsRefused) {
  TempFolder folder;
  const std::string path = WriteFile(folder);
  PackedFileSpec other = kSpec;
  other.key = "model 2\n";
  EXPECT_THAT(WhyNot(path, other), HasSubstr("another model"));
  other.key = "model 1";
  EXPECT_THAT(WhyNot(path, other), HasSubstr("another model"));
  other = kSpec;
  other.sections = 4;
  EXPECT_THAT(WhyNot(path, other), HasSubstr("other tensors"));
  other = kSpec;
  other.data_bytes = 2999;
  EXPECT_THAT(WhyNot(path, other), HasSubstr("other tensors"));
}

TEST(PackedFile, AFileOfAnotherLengthIsRefused) {
  TempFolder folder;
  const std::string path = WriteFile(folder);
  const auto whole = static_cast<int64_t>(std::filesystem::file_size(path));
  EXPECT_EQ(whole, PackedFileBytes(kSpec));
  for (const int64_t size : {whole + 1, whole - 1, PackedDataOffset(kSpec), int64_t{70},
                             int64_t{45}, int64_t{39}, int64_t{0}}) {
    std::filesystem::resize_file(path, static_cast<uintmax_t>(size));
    EXPECT_FALSE(WhyNot(path).empty()) << size;
  }
}

// The checksum of the head covers every byte that is not compared.
TEST(PackedFile, EveryDamagedByteOfTheHeadIsNoticed) {
  TempFolder folder;
  const std::string path = WriteFile(folder);
  const size_t head_bytes = 40 + kSpec.key.size() + 3 * sizeof(uint64_t);
  for (size_t at = 0; at < head_bytes; ++at) {
    WriteFile(folder);
    Overwrite(path, static_cast<int64_t>(at), "\xa5");
    EXPECT_FALSE(WhyNot(path).empty()) << at;
  }
}

TEST(PackedFile, WhatIsNoFileOfOursIsRefused) {
  TempFolder folder;
  const std::string path = WriteFile(folder);
  Overwrite(path, 0, "GGUF");
  EXPECT_THAT(WhyNot(path), HasSubstr("no file of packed weights"));
  WriteFile(folder);
  Overwrite(path, 16, std::string_view("\x02\0\0\0", 4));
  EXPECT_THAT(WhyNot(path), HasSubstr("version 2"));
  std::filesystem::create_directory(folder.File("folder"));
  EXPECT_THAT(WhyNot(folder.File("folder")), HasSubstr("not a regular file"));
  std::filesystem::create_symlink(path, folder.File("link"));
  EXPECT_FALSE(PackedFile::Open(folder.File("link"), kSpec).ok());
  ASSERT_EQ(::mkfifo(folder.File("pipe").c_str(), 0600), 0);
  EXPECT_THAT(WhyNot(folder.File("pipe")), HasSubstr("not a regular file"));
}

TEST(PackedFile, AFileOfAnotherUserIsRefused) {
  TempFolder folder;
  const std::string path = WriteFile(folder);
  if (::chown(path.c_str(), 12345, 12345) != 0) GTEST_SKIP() << "this user cannot give a file away";
  EXPECT_THAT(WhyNot(path), HasSubstr("another user"));
}

TEST(PackedFile, AnUnfinishedFileIsRefused) {
  TempFolder folder;
  const std::string path = folder.File("file");
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_TRUE(PackedFileWriter::Create(descriptor, kSpec).ok());
  EXPECT_THAT(WhyNot(path), HasSubstr("no file of packed weights"));
  ::close(descriptor);
}

TEST(PackedFile, ChecksumsTellPlacesApart) {
  const std::vector<std::byte> bytes = Bytes(100, 3);
  EXPECT_EQ(PieceChecksum(8, bytes), PieceChecksum(8, bytes));
  EXPECT_NE(PieceChecksum(8, bytes), PieceChecksum(16, bytes));
  EXPECT_NE(PieceChecksum(8, bytes), PieceChecksum(8, Bytes(100, 4)));
}

TEST(PackedFileWriter, SaysThatAFileCannotBeSoLarge) {
  TempFolder folder;
  const int descriptor = ::open(folder.File("file").c_str(), O_RDWR | O_CREAT, 0600);
  PackedFileSpec huge = kSpec;
  huge.data_bytes = int64_t{1} << 61;
  EXPECT_EQ(PackedFileWriter::Create(descriptor, huge).status().code(),
            absl::StatusCode::kResourceExhausted);
  ::close(descriptor);
}

// Pieces of odd sizes, from several threads, into a range that begins and ends inside a page.
TEST(LargePages, HoldWhatIsWrittenInAnyOrder) {
  constexpr int64_t kPiece = 300'001;
  TempFolder folder;
  const PackedFileSpec spec = {.key = "k", .sections = 0, .data_bytes = 7 << 20};
  const int descriptor = ::open(folder.File("file").c_str(), O_RDWR | O_CREAT, 0600);
  const auto writer = PackedFileWriter::Create(descriptor, spec);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::byte> data = Bytes(static_cast<size_t>(spec.data_bytes), 5);
  constexpr int64_t kBefore = 4096, kAfter = 5000;
  const std::span range = std::span(data).subspan(kBefore, data.size() - kBefore - kAfter);
  ASSERT_TRUE(writer->Write(0, std::span(data).first(kBefore)).ok());
  ASSERT_TRUE(writer->Write(spec.data_bytes - kAfter, std::span(data).last(kAfter)).ok());
  LargePages pages(*writer, kBefore, static_cast<int64_t>(range.size()));
  ThreadPool pool(3);
  const int64_t pieces = (static_cast<int64_t>(range.size()) + kPiece - 1) / kPiece;
  std::atomic<int64_t> written = 0;
  pool.ParallelFor(pieces, [&](int64_t i, int) {
    const auto at = static_cast<size_t>((pieces - 1 - i) * kPiece);
    const auto piece = range.subspan(at, std::min<size_t>(kPiece, range.size() - at));
    written += pages.Write(kBefore + static_cast<int64_t>(at), piece).ok() ? 1 : 0;
  });
  EXPECT_EQ(written, pieces);
  ASSERT_TRUE(writer->Finish({}).ok());
  const auto file = PackedFile::Open(folder.File("file"), spec);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(std::ranges::equal(file->data(), data));
  ::close(descriptor);
}

TEST(LargePages, OfNothingAreNone) {
  TempFolder folder;
  const int descriptor = ::open(folder.File("file").c_str(), O_RDWR | O_CREAT, 0600);
  const auto writer = PackedFileWriter::Create(descriptor, kSpec);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::vector<std::byte> data = Bytes(3000, 2);
  ASSERT_TRUE(LargePages(*writer, 0, 0).Write(0, data).ok());
  const std::vector<uint64_t> checksums(3, 77);
  ASSERT_TRUE(writer->Finish(checksums).ok());
  const auto file = PackedFile::Open(folder.File("file"), kSpec);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_TRUE(std::ranges::equal(file->data(), data));
  ::close(descriptor);
}

}  // namespace
}  // namespace facet
