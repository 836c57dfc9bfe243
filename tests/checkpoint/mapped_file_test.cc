#include "checkpoint/mapped_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <utility>

#include "base/status.h"
#include "tests/base/temp_folder.h"
#include "tests/checkpoint/resident_memory.h"

namespace facet {
namespace {

using ::testing::HasSubstr;
using testing::ResidentFileBytes;
using testing::TempFolder;

std::string WriteFile(const TempFolder& folder, std::string_view contents) {
  const std::string path = folder.File("file");
  std::ofstream(path, std::ios::binary) << contents;
  return path;
}

std::string TextOf(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, ShowsTheFilesBytes) {
  TempFolder folder;
  const std::string path = WriteFile(folder, std::string_view("a\0b", 3));
  const auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(TextOf(*file), std::string("a\0b", 3));
  EXPECT_EQ(file->path(), path);
}

TEST(MappedFile, MovesWithItsMapping) {
  TempFolder folder;
  auto first = MappedFile::Open(WriteFile(folder, "first"));
  ASSERT_TRUE(first.ok()) << first.status();
  const std::byte* data = first->bytes().data();
  MappedFile moved = *std::move(first);
  EXPECT_EQ(moved.bytes().data(), data);
  std::filesystem::remove(folder.File("file"));
  auto second = MappedFile::Open(WriteFile(folder, "second"));
  ASSERT_TRUE(second.ok()) << second.status();
  moved = *std::move(second);
  EXPECT_EQ(TextOf(moved), "second");
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  TempFolder folder;
  const auto code_of = [](const std::string& path) {
    const auto file = MappedFile::Open(path);
    EXPECT_THAT(MessageOf(file.status()), HasSubstr(path));
    return file.status().code();
  };
  EXPECT_EQ(code_of(folder.File("absent")), absl::StatusCode::kNotFound);
  EXPECT_EQ(code_of(WriteFile(folder, "") + "/below"), absl::StatusCode::kNotFound);
  EXPECT_EQ(code_of(folder.File("file")), absl::StatusCode::kInvalidArgument) << "empty";
  EXPECT_EQ(code_of(folder.File("")), absl::StatusCode::kInvalidArgument) << "a folder";
  EXPECT_EQ(code_of("/dev/null"), absl::StatusCode::kInvalidArgument);
  const std::string pipe = folder.File("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(code_of(pipe), absl::StatusCode::kInvalidArgument) << "must not wait for a writer";
  const std::string loop = folder.File("loop");
  ASSERT_EQ(::symlink("loop", loop.c_str()), 0);
  EXPECT_EQ(code_of(loop), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code_of(folder.File(std::string(1000, 'n'))), absl::StatusCode::kInvalidArgument);
}

TEST(MappedFile, RefusesAFileItMayNotRead) {
  TempFolder folder;
  const std::string path = WriteFile(folder, "secret");
  ASSERT_EQ(::chmod(path.c_str(), 0), 0);
  const bool root = ::geteuid() == 0;  // who may read everything
  if (root && ::seteuid(65534) != 0) GTEST_SKIP() << "this root may not become another user";
  const auto file = MappedFile::Open(path);
  ASSERT_EQ(root ? ::seteuid(0) : 0, 0);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kPermissionDenied);
}

TEST(MappedFile, ReleasedPagesLeaveTheResidentMemoryAndStayReadable) {
  constexpr size_t kBytes = 32 << 20;
  TempFolder folder;
  const auto file = MappedFile::Open(WriteFile(folder, std::string(kBytes, 'x') + "tail"));
  ASSERT_TRUE(file.ok()) << file.status();
  const auto sum = [&file] {
    int64_t total = 0;
    for (size_t i = 0; i < kBytes; i += 512) total += static_cast<int64_t>(file->bytes()[i]);
    return total;
  };
  const int64_t expected = sum();
  const int64_t before = ResidentFileBytes();
  file->Release(file->bytes().subspan(1, kBytes / 2));
  EXPECT_LT(ResidentFileBytes(), before - static_cast<int64_t>(kBytes / 2) + (1 << 20));
  file->Release(file->bytes());
  EXPECT_LT(ResidentFileBytes(), before - static_cast<int64_t>(kBytes) + (1 << 20));
  EXPECT_EQ(sum(), expected);
  EXPECT_THAT(TextOf(*file), ::testing::EndsWith("xtail"));
}

// A range's first and last page may hold bytes of a neighbour that is still in use.
TEST(MappedFile, ReleasesOnlyWholePages) {
  TempFolder folder;
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const auto file = MappedFile::Open(WriteFile(folder, std::string(4 * page, 'x')));
  ASSERT_TRUE(file.ok()) << file.status();
  file->Release({});
  file->Release(file->bytes().subspan(1, page));
  file->Release(file->bytes().subspan(page - 1, 2));
  file->Release(file->bytes().subspan(4 * page - 1));
  EXPECT_EQ(TextOf(*file), std::string(4 * page, 'x'));
}

TEST(MappedFile, ReadsWithoutTheMapping) {
  TempFolder folder;
  const std::string path = WriteFile(folder, "hello, world");
  auto file = MappedFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const MappedFile moved = std::move(*file);
  std::string word(5, ' ');
  EXPECT_TRUE(moved.Read(7, std::as_writable_bytes(std::span(word))).ok());
  EXPECT_EQ(word, "world");
  EXPECT_TRUE(moved.Read(12, {}).ok());
  std::filesystem::resize_file(path, 9);
  const absl::Status status = moved.Read(7, std::as_writable_bytes(std::span(word)));
  EXPECT_EQ(MessageOf(status), path + ": it has shrunk");
}

TEST(MappedFileDeathTest, RefusesToReleaseForeignMemory) {
  TempFolder folder;
  const auto file = MappedFile::Open(WriteFile(folder, "x"));
  ASSERT_TRUE(file.ok()) << file.status();
  const std::byte other[2] = {};
  EXPECT_DEATH(file->Release(other), "a range outside");
}

}  // namespace
}  // namespace facet
