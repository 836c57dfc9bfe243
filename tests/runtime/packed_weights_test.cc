// Ranks on weights that lie packed in a file: the same bits as without, at every degree from one
// file, and whatever is wrong with file or folder.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/prng.h"
#include "base/status.h"
#include "tests/base/temp_folder.h"
#include "tests/runtime/in_process_group.h"

namespace facet::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
namespace fs = std::filesystem;

constexpr const char* kModels[] = {
    "tests/golden/tiny/gemma3_8h_quantized.gguf", "tests/golden/tiny/gemma3_8h.gguf",
    "tests/golden/tiny/gemma2.gguf", "tests/golden/tiny/llama_quantized.gguf"};

GroupOptions Options(const std::string& model, int world) {
  GroupOptions options;
  options.rank.model_path = model;
  options.rank.kv_tokens = 1024;
  options.rank.step_tokens_max = 64;
  options.rank.sequences_max = 4;
  options.world = world;
  return options;
}

// The digest of all logits of a prompt and its continuation.
std::string DigestOf(const GroupOptions& options) {
  const auto group = InProcessGroup::Start(options);
  if (!group.ok()) return MessageOf(group.status());
  std::vector<TokenId> prompt;
  for (int i = 0; i < 40; ++i) prompt.push_back(static_cast<TokenId>(Mix64(3, i) % 300));
  return (*group)->Run({GreedyRequest(prompt, 8)}).front().logits_sha256;
}

class PackedWeights : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    model_ = folder_.File("model.gguf");
    fs::copy_file(GetParam(), model_);
    expected_ = DigestOf(Options(model_, 1));
    ASSERT_EQ(expected_.size(), 64u) << expected_;
  }

  GroupOptions Cached(int world) {
    GroupOptions options = Options(model_, world);
    options.rank.packed_cache.folder = cache_;
    options.rank.warn = [this](std::string_view what) { warnings_.emplace_back(what); };
    return options;
  }
  // The one file there is.
  std::string File() const {
    std::string path;
    for (const auto& entry : fs::directory_iterator(cache_)) {
      EXPECT_EQ(path, "");
      path = entry.path();
    }
    return path;
  }

  TempFolder folder_;
  std::string model_;
  std::string cache_ = folder_.File("packed");
  std::string expected_;
  std::vector<std::string> warnings_;
};

TEST_P(PackedWeights, OneFileGivesTheSameBitsAtEveryDegree) {
  EXPECT_EQ(DigestOf(Cached(2)), expected_);
  fs::create_hard_link(File(), folder_.File("same"));
  for (const int world : {1, 2, 3}) {
    EXPECT_EQ(DigestOf(Cached(world)), expected_) << "world " << world;
    EXPECT_EQ(fs::hard_link_count(File()), 2u) << "the file was packed anew";
  }
  EXPECT_THAT(warnings_, IsEmpty());
}

TEST_P(PackedWeights, EveryDamageIsNoticedByWhoReadsIt) {
  ASSERT_EQ(DigestOf(Cached(2)), expected_);
  const std::string path = File();
  const auto size = static_cast<int64_t>(fs::file_size(path));
  int noticed = 0;
  for (int i = 0; i < 12; ++i) {
    // One bit somewhere in the data. Between images there may be some that are nobody's.
    const int64_t data = int64_t{2} << 20;
    const int64_t at = data + static_cast<int64_t>(Mix64(11, i) % (size - data));
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const int byte = file.get();
      file.seekp(at).put(static_cast<char>(byte ^ 1 << i % 8));
    }
    warnings_.clear();
    EXPECT_EQ(DigestOf(Cached(2)), expected_) << "byte " << at;
    EXPECT_LE(warnings_.size(), 1u);
    noticed += static_cast<int>(warnings_.size());
  }
  EXPECT_GE(noticed, 6);
}

TEST_P(PackedWeights, AnotherModelAtTheSamePathIsPackedAnew) {
  ASSERT_EQ(DigestOf(Cached(1)), expected_);
  fs::last_write_time(model_, fs::last_write_time(model_) + std::chrono::seconds(1));
  EXPECT_EQ(DigestOf(Cached(1)), expected_);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("another model")));
  File();  // replaced, not added
}

TEST_P(PackedWeights, WithoutAFolderOrRoomEveryRankPacksForItself) {
  std::ofstream(cache_) << "a file in the way";
  EXPECT_EQ(DigestOf(Cached(2)), expected_);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("not kept"), HasSubstr("not kept")));
  fs::remove(cache_);
  warnings_.clear();
  GroupOptions options = Cached(1);
  options.rank.packed_cache.bytes_max = 1000;
  EXPECT_EQ(DigestOf(options), expected_);
  EXPECT_THAT(warnings_, ElementsAre(HasSubstr("may hold 1000")));
}

TEST_P(PackedWeights, ScreenedAndWholeHeadsHaveFilesOfTheirOwn) {
  GroupOptions whole = Cached(1);
  whole.rank.screened_head = false;
  EXPECT_EQ(DigestOf(whole), expected_);
  EXPECT_EQ(DigestOf(Cached(1)), expected_);
  EXPECT_EQ(std::distance(fs::directory_iterator(cache_), fs::directory_iterator()), 2);
  EXPECT_THAT(warnings_, IsEmpty());
}

// Of a start: the bytes that are packed, by what is said of them; each stretch of work is told from
// its beginning to its end.
int64_t BytesPacked(GroupOptions options) {
  int64_t packed = 0, done = 0, total = 0;
  options.rank.progress = [&](int64_t now, int64_t of) {
    if (now == 0) {
      EXPECT_EQ(done, total) << "the work before has not ended";
      packed += of;
    }
    EXPECT_TRUE(now == 0 || (now >= done && of == total)) << now << " of " << of;
    EXPECT_LE(now, of);
    done = now;
    total = of;
  };
  const auto group = InProcessGroup::Start(options);
  EXPECT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(done, total);
  return packed;
}

TEST_P(PackedWeights, ProgressIsSaidOfWhatIsPacked) {
  const int64_t first = BytesPacked(Cached(1));
  EXPECT_GT(first, 0);
  const int64_t second = BytesPacked(Cached(1));  // what the file cannot hold
  EXPECT_LT(second, first);
  EXPECT_GT(BytesPacked(Options(model_, 1)), second);
}

TEST_P(PackedWeights, MemoryIsCountedAsWithoutAFile) {
  const auto without = InProcessGroup::Start(Options(model_, 2));
  const auto with = InProcessGroup::Start(Cached(2));
  ASSERT_TRUE(without.ok() && with.ok());
  EXPECT_EQ((*with)->leader().memory().weight_bytes, (*without)->leader().memory().weight_bytes);
  EXPECT_EQ((*with)->leader().memory().slice_bytes, (*without)->leader().memory().slice_bytes);
}

INSTANTIATE_TEST_SUITE_P(Models, PackedWeights, ::testing::ValuesIn(kModels),
                         [](const auto& info) { return fs::path(info.param).stem().string(); });

}  // namespace
}  // namespace facet::testing
