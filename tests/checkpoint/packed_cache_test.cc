#include "checkpoint/packed_cache.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempFolder;
using ::testing::UnorderedElementsAre;
namespace fs = std::filesystem;

PackedFileSpec SpecOf(std::string_view text) {
  return {.key = std::string(text), .sections = 1, .data_bytes = 5};
}

// A cache of files whose data are five letters.
class PackedCacheTest : public ::testing::Test {
 protected:
  PackedCacheOptions Options() {
    return {.folder = folder_.File("a/b"),
            .warn = [this](std::string_view what) { warnings_.emplace_back(what); }};
  }
  std::string Path(const std::string& name) const { return folder_.File("a/b/" + name); }
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.File("a/b"))) {
      names.push_back(entry.path().filename());
    }
    return names;
  }

  absl::Status Build(const PackedFileWriter& writer, std::string_view letters) {
    ++builds_;
    FACET_RETURN_IF_ERROR(writer.Write(0, std::as_bytes(std::span(letters))));
    const uint64_t checksum = PieceChecksum(0, std::as_bytes(std::span(letters)));
    return writer.Finish({&checksum, 1});
  }
  static absl::Status Check(const PackedFile& file) {
    if (PieceChecksum(0, file.data()) == file.checksum(0)) return absl::OkStatus();
    return FailedPrecondition("its letters are damaged");
  }
  // The letters of the file `name`, built if need be; or what went wrong.
  std::string Get(PackedCache& cache, std::string_view name, std::string_view letters) {
    const auto file = cache.Get(name, SpecOf(name), &Check, [&](const PackedFileWriter& writer) {
      return Build(writer, letters);
    });
    if (!file.ok()) return MessageOf(file.status());
    return {reinterpret_cast<const char*>(file->data().data()), file->data().size()};
  }

  TempFolder folder_;
  std::vector<std::string> warnings_;
  std::atomic<int> builds_ = 0;
};

TEST_F(PackedCacheTest, BuildsOnceAndFindsAgain) {
  PackedCache cache(Options());
  EXPECT_EQ(Get(cache, "x", "hello"), "hello");
  EXPECT_EQ(Get(cache, "x", "other"), "hello");
  PackedCache again(Options());
  EXPECT_EQ(Get(again, "x", "other"), "hello");
  EXPECT_EQ(builds_, 1);
  EXPECT_THAT(Names(), ElementsAre("x.packed"));
  EXPECT_THAT(warnings_, IsEmpty());
  struct stat info;
  ASSERT_EQ(::stat(Path("x.packed").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 077, 0u);
}

TEST_F(PackedCacheTest, DamageIsPackedAnewWithOneWarning) {
  PackedCache cache(Options());
  Get(cache, "x", "hello");
  const auto size = static_cast<int64_t>(fs::file_size(Path("x.packed")));
  const struct {
    std::function<void()> spoil;
    const char* why;
  } cases[] = {
      {[&] {
         std::fstream file(Path("x.packed"), std::ios::in | std::ios::out | std::ios::binary);
         file.seekp(size - 1).put('!');
       },
       "letters are damaged"},
      {[&] { fs::resize_file(Path("x.packed"), static_cast<uintmax_t>(size - 1)); }, "bytes, not"},
      {[&] { fs::resize_file(Path("x.packed"), 0); }, "empty"},
      {[&] { std::ofstream(Path("x.packed")) << std::string(100, 'z'); }, "no file of packed"},
  };
  for (const auto& [spoil, why] : cases) {
    warnings_.clear();
    spoil();
    EXPECT_EQ(Get(cache, "x", "fresh"), "fresh");
    EXPECT_THAT(warnings_, ElementsAre(HasSubstr(why)));
  }
}

TEST_F(PackedCacheTest, AStaleFileIsReplaced) {
  PackedCache cache(Options());
  Get(cache, "x", "hello");
  const auto file = cache.Get("x", SpecOf("newer"), &Check, [&](const PackedFileWriter& writer) {
    return Build(writer, "newer");
  });
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(builds_, 2);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("another model")));
  EXPECT_THAT(Names(), ElementsAre("x.packed"));
}

TEST_F(PackedCacheTest, WhatIsMappedStaysWhenItsFileIsReplaced) {
  PackedCache cache(Options());
  const auto old = cache.Get("x", SpecOf("x"), &Check, [&](const PackedFileWriter& writer) {
    return Build(writer, "hello");
  });
  ASSERT_TRUE(old.ok()) << old.status();
  fs::remove(Path("x.packed"));
  EXPECT_EQ(Get(cache, "x", "fresh"), "fresh");
  EXPECT_EQ(std::memcmp(old->data().data(), "hello", 5), 0);
}

TEST_F(PackedCacheTest, ManyThatStartTogetherBuildOnce) {
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      PackedCache cache(Options());
      right += Get(cache, "x", "hello") == "hello" ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 8);
  EXPECT_EQ(builds_, 1);
  EXPECT_THAT(Names(), ElementsAre("x.packed"));
}

TEST_F(PackedCacheTest, WaitsForAnotherOnlySoLong) {
  fs::create_directories(folder_.File("a/b"));
  const int other = ::open(Path("x.packed.partial").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(::flock(other, LOCK_EX), 0);
  PackedCacheOptions options = Options();
  options.wait_max = milliseconds(20);
  PackedCache cache(options);
  EXPECT_THAT(Get(cache, "x", "hello"), HasSubstr("another process"));
  EXPECT_EQ(builds_, 0);
  ::close(other);  // as when it dies
  EXPECT_EQ(Get(cache, "x", "hello"), "hello");
}

TEST_F(PackedCacheTest, WaitsAsLongAsTheOtherWrites) {
  using Clock = std::chrono::steady_clock;
  constexpr milliseconds kWaitMax(1000);
  fs::create_directories(folder_.File("a/b"));
  PackedCacheOptions options = Options();
  options.wait_max = kWaitMax;
  PackedCache cache(options);
  // A writer that stood still itself shows nothing: then another one writes another file.
  bool shown = false;
  for (int i = 0; i < 5 && !shown; ++i) {
    const std::string name = "x" + std::to_string(i);
    const int other = ::open(Path(name + ".packed.partial").c_str(), O_RDWR | O_CREAT, 0600);
    ASSERT_EQ(::flock(other, LOCK_EX), 0);
    const auto start = Clock::now();
    Clock::duration stood_still{};  // the longest time between two writes
    std::thread writer([&] {
      for (auto last = start; last < start + 2 * kWaitMax;) {
        EXPECT_EQ(::pwrite(other, "x", 1, 0), 1);
        std::this_thread::sleep_for(milliseconds(5));
        const auto now = Clock::now();
        stood_still = std::max(stood_still, now - last);
        last = now;
      }
      ::close(other);
    });
    const std::string letters = Get(cache, name, "hello");
    const auto end = Clock::now();
    writer.join();
    shown = stood_still < kWaitMax / 2;
    if (!shown) continue;
    EXPECT_EQ(letters, "hello");
    EXPECT_GE(end, start + 2 * kWaitMax);
  }
  EXPECT_TRUE(shown);
}

TEST_F(PackedCacheTest, WhatWasJustBuiltIsNotCheckedAgain) {
  PackedCache cache(Options());
  int checks = 0;
  const auto check = [&](const PackedFile& file) {
    ++checks;
    return Check(file);
  };
  const auto build = [&](const PackedFileWriter& writer) { return Build(writer, "hello"); };
  ASSERT_TRUE(cache.Get("x", SpecOf("x"), check, build).ok());
  EXPECT_EQ(checks, 0);
  ASSERT_TRUE(cache.Get("x", SpecOf("x"), check, build).ok());
  EXPECT_EQ(checks, 1);
}

TEST_F(PackedCacheTest, AFailedBuildLeavesNothing) {
  PackedCache cache(Options());
  const auto file = cache.Get("x", SpecOf("x"), &Check, [](const PackedFileWriter&) {
    return InvalidArgument("blk.0: not finite");
  });
  EXPECT_THAT(MessageOf(file.status()), HasSubstr("blk.0"));
  EXPECT_THAT(Names(), IsEmpty());
  EXPECT_EQ(Get(cache, "x", "hello"), "hello");
}

TEST_F(PackedCacheTest, AFolderThatCannotBeIsAnError) {
  std::ofstream(folder_.File("a")) << "a file in the way";
  PackedCache cache(Options());
  EXPECT_THAT(Get(cache, "x", "hello"), HasSubstr("a/b"));
  EXPECT_EQ(builds_, 0);
}

TEST_F(PackedCacheTest, FilesUsedLongestAgoMakeRoom) {
  const int64_t size = PackedFileBytes(SpecOf("x"));
  PackedCacheOptions options = Options();
  options.bytes_max = 3 * size;
  PackedCache cache(options);
  timespec when[2] = {{1000, 0}, {1000, 0}};
  for (const char* name : {"p", "q", "r"}) {
    Get(cache, name, "hello");
    ::utimensat(AT_FDCWD, Path(std::string(name) + ".packed").c_str(), when, 0);
    ++when[1].tv_sec;
  }
  Get(cache, "p", "hello");  // used again, now
  std::ofstream(Path("notes.txt")) << "somebody's";
  EXPECT_EQ(Get(cache, "s", "hello"), "hello");
  EXPECT_THAT(Names(), UnorderedElementsAre("notes.txt", "p.packed", "r.packed", "s.packed"));
}

TEST_F(PackedCacheTest, WhatDeadWritersLeftIsRemoved) {
  fs::create_directories(folder_.File("a/b"));
  std::ofstream(Path("dead.packed.partial")) << "half";
  const int live = ::open(Path("live.packed.partial").c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(::flock(live, LOCK_EX), 0);
  std::ofstream(Path("x.packed.partial")) << "half of this one";
  PackedCache cache(Options());
  EXPECT_EQ(Get(cache, "x", "hello"), "hello");
  EXPECT_THAT(Names(), UnorderedElementsAre("live.packed.partial", "x.packed"));
  ::close(live);
}

TEST_F(PackedCacheTest, AFileBeyondTheBoundIsNotMade) {
  PackedCacheOptions options = Options();
  options.bytes_max = PackedFileBytes(SpecOf("x")) - 1;
  PackedCache cache(options);
  EXPECT_THAT(Get(cache, "x", "hello"), HasSubstr("may hold"));
  EXPECT_EQ(builds_, 0);
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(PackedCacheTest, AWriterIsNotTakenForOneThatHasFinishedMeanwhile) {
  fs::create_directories(folder_.File("a/b"));
  const std::string partial = Path("y.packed.partial");
  // Whoever opens a file waits until its lease is given back; the signal says so, to nobody.
  const int finished = ::open(partial.c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(::fcntl(finished, F_SETSIG, SIGURG), 0);
  if (::fcntl(finished, F_SETLEASE, F_WRLCK) != 0) GTEST_SKIP() << std::strerror(errno);
  std::thread other([&] {
    PackedCache cache(Options());
    EXPECT_EQ(Get(cache, "x", "hello"), "hello");
  });
  while (::fcntl(finished, F_GETLEASE) == F_WRLCK) std::this_thread::yield();
  fs::rename(partial, Path("y.packed"));
  const int live = ::open(partial.c_str(), O_RDWR | O_CREAT, 0600);
  EXPECT_EQ(::flock(live, LOCK_EX), 0);
  EXPECT_EQ(::fcntl(finished, F_SETLEASE, F_UNLCK), 0);
  other.join();
  EXPECT_THAT(Names(), UnorderedElementsAre("x.packed", "y.packed", "y.packed.partial"));
  ::close(live);
  ::close(finished);
}

}  // namespace
}  // namespace facet
