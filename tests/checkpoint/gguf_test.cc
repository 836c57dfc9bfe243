#include "checkpoint/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/checkpoint/resident_memory.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::TempFolder;

constexpr char kGolden[] = "tests/golden/block_formats/";

// Writes the builder's file and opens it.
absl::StatusOr<GgufModel> OpenBuilt(const TempFolder& folder, const GgufBuilder& builder) {
  builder.WriteFile(folder.File("model.gguf"));
  return GgufModel::Open(folder.File("model.gguf"));
}

template <typename T>
void ExpectError(const absl::StatusOr<T>& result, std::string_view text) {
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(MessageOf(result.status()), HasSubstr(std::string(text)));
}

TEST(GgufModel, ReadsTheMetadataThatTheGgufPackageWrites) {
  const auto model = GgufModel::Open(std::string(kGolden) + "blocks.gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(*model->GetInt("value.u8"), 200);
  EXPECT_EQ(*model->GetInt("value.i8"), -100);
  EXPECT_EQ(*model->GetInt("value.u16"), 60000);
  EXPECT_EQ(*model->GetInt("value.i16"), -30000);
  EXPECT_EQ(*model->GetInt("value.u32"), 4000000000);
  EXPECT_EQ(*model->GetInt("value.i32"), -2000000000);
  EXPECT_EQ(*model->GetInt("value.i64"), -(int64_t{1} << 62));
  EXPECT_EQ(*model->GetFloat("value.f32"), double{0.1f});
  EXPECT_EQ(*model->GetFloat("value.f64"), 0.1);
  EXPECT_EQ(*model->GetFloat("value.i16"), -30000.0);
  EXPECT_TRUE(*model->GetBool("value.true"));
  EXPECT_FALSE(*model->GetBool("value.false"));
  EXPECT_EQ(*model->GetString("value.string"), "gr\u00fc\u00dfe");
  EXPECT_EQ(*model->GetString("general.architecture"), "test");
  EXPECT_THAT(*model->GetStrings("array.strings"),
              ElementsAre("a", "", "\u0142\u00f3d\u017a", std::string_view("\xff\0\xfe", 3)));
  EXPECT_THAT(*model->GetNumbers("array.i32"), ElementsAre(1, -2, 3));
  EXPECT_THAT(*model->GetNumbers("array.f32"), ElementsAre(0.5, -1.5));
  EXPECT_THAT(*model->GetPerLayer("array.i32", 3), ElementsAre(1, -2, 3));
  EXPECT_THAT(*model->GetPerLayer("array.bool", 3), ElementsAre(1, 0, 1));
  EXPECT_THAT(*model->GetPerLayer("value.u8", 2), ElementsAre(200, 200));
}

TEST(GgufModel, TellsAbsentFromWrong) {
  const auto model = GgufModel::Open(std::string(kGolden) + "blocks.gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE(model->Has("value.u8"));
  EXPECT_FALSE(model->Has("value.u"));
  const auto absent = model->GetInt("value.u");
  EXPECT_EQ(absent.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(absent.status()), HasSubstr("'value.u'"));

  ExpectError(model->GetInt("value.u64"), "'value.u64' is not an integer");  // 2^63 + 5
  ExpectError(model->GetInt("value.f32"), "'value.f32' is not an integer");
  ExpectError(model->GetInt("value.true"), "'value.true' is not an integer");
  ExpectError(model->GetInt("array.i32"), "'array.i32' is not an integer");
  ExpectError(model->GetFloat("value.string"), "'value.string' is not a finite number");
  ExpectError(model->GetFloat("array.f32"), "'array.f32' is not a finite number");
  ExpectError(model->GetBool("value.u8"), "'value.u8' is not a boolean");
  ExpectError(model->GetBool("array.bool"), "'array.bool' is not a boolean");
  ExpectError(model->GetString("value.u8"), "'value.u8' is not a string");
  ExpectError(model->GetString("array.strings"), "'array.strings' is not a string");
  ExpectError(model->GetStrings("value.string"), "'value.string' is not an array of strings");
  ExpectError(model->GetStrings("array.i32"), "'array.i32' is not an array of strings");
  ExpectError(model->GetNumbers("value.u8"), "'value.u8' is not an array of numbers");
  ExpectError(model->GetNumbers("array.strings"), "'array.strings' is not an array of numbers");
  ExpectError(model->GetPerLayer("array.i32", 4), "'array.i32' has 3 entries for 4 layers");
  ExpectError(model->GetPerLayer("array.f32", 2), "'array.f32' is not an array of integers");
  ExpectError(model->GetPerLayer("value.f32", 2), "'value.f32' is not an integer");
}

TEST(GgufModel, RefusesNumbersThatAreNone) {
  TempFolder folder;
  GgufBuilder builder;
  builder.Add("nan", std::nanf("")).Add("infinity", std::numeric_limits<double>::infinity());
  const auto model = OpenBuilt(folder, builder);
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectError(model->GetFloat("nan"), "'nan' is not a finite number");
  ExpectError(model->GetFloat("infinity"), "'infinity' is not a finite number");
}

TEST(GgufModel, FindsTensorsByName) {
  TempFolder folder;
  GgufBuilder builder;
  builder.AddTensor("b", {2}, {1, 2}).AddTensor("a", {1}, {3});
  const auto model = OpenBuilt(folder, builder);
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_NE(model->FindTensor("a"), nullptr);
  EXPECT_EQ(model->FindTensor("a"), &model->tensors()[1]);
  EXPECT_EQ(model->FindTensor("b"), &model->tensors()[0]);
  EXPECT_EQ(model->FindTensor("c"), nullptr);
  EXPECT_EQ(model->FindTensor(""), nullptr);
}

TEST(GgufModel, NamesTheFileThatIsWrong) {
  TempFolder folder;
  const std::string path = folder.File("bad.gguf");
  GgufBuilder().SetVersion(1).WriteFile(path);
  ExpectError(GgufModel::Open(path), path + ": GGUF version 1");
  EXPECT_EQ(GgufModel::Open(folder.File("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST(GgufModel, OpeningReadsNoTensorData) {
  constexpr uint64_t kElements = 8 << 20;  // 32 MiB
  TempFolder folder;
  GgufBuilder builder;
  builder.AddTensor("large", {kElements}, std::vector<float>(kElements));
  builder.WriteFile(folder.File("model.gguf"));
  const int64_t before = testing::ResidentFileBytes();
  const auto model = GgufModel::Open(folder.File("model.gguf"));
  ASSERT_TRUE(model.ok()) << model.status();
  // The kernel maps what lies around a page that is read, at most 2 MiB here.
  EXPECT_LT(testing::ResidentFileBytes() - before, static_cast<int64_t>(kElements));
}

// The digest stands for the model: any change of the header or of the size must show.
TEST(GgufModel, DigestFollowsTheHeaderAndTheSize) {
  TempFolder folder;
  const auto digest = [&folder](const GgufBuilder& builder) {
    const auto model = OpenBuilt(folder, builder);
    EXPECT_TRUE(model.ok()) << model.status();
    return model.ok() ? model->digest() : 0;
  };
  const auto sample = [](const char* text, const char* tensor, uint64_t rows) {
    GgufBuilder builder;
    builder.Add("key", text).AddTensor(tensor, {2, rows}, std::vector<float>(2 * rows));
    return builder;
  };
  const uint64_t original = digest(sample("text", "tensor", 2));
  EXPECT_EQ(digest(sample("text", "tensor", 2)), original);
  EXPECT_NE(digest(sample("texu", "tensor", 2)), original);
  EXPECT_NE(digest(sample("text", "tensos", 2)), original);
  EXPECT_NE(digest(sample("text", "tensor", 3)), original);
  EXPECT_NE(digest(sample("text", "tensor", 2).AddRawData("x")), original);
  EXPECT_NE(digest(sample("text", "tensor", 2).SetVersion(2)), original);
}

std::vector<float> FloatsOf(const GgufTensor& tensor) {
  std::vector<float> values(tensor.data.size() / sizeof(float));
  std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
  return values;
}

// Recorded from the `gguf` package's writer by make.py: tensor i is 4 + i numbers from 10 i on.
TEST(SplitGguf, JoinsThePartsThatTheGgufPackageWrites) {
  const auto model = GgufModel::Open(std::string(kGolden) + "split-00001-of-00003.gguf");
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(*model->GetString("general.name"), "split");
  ASSERT_EQ(model->tensors().size(), 5u);
  for (int i = 0; i < 5; ++i) {
    const GgufTensor* tensor = model->FindTensor("t" + std::to_string(i));
    ASSERT_NE(tensor, nullptr);
    EXPECT_EQ(tensor->file, i / 2);
    std::vector<float> expected;
    for (int n = 0; n < 4 + i; ++n) expected.push_back(static_cast<float>(10 * i + n));
    EXPECT_EQ(FloatsOf(*tensor), expected);
    model->Release(*tensor);
    EXPECT_EQ(FloatsOf(*tensor), expected);
  }
}

// Three parts of a model in a folder, each of which a test may write otherwise.
class SplitFolder {
 public:
  SplitFolder() {
    for (int part = 0; part < 3; ++part) Write(part, [](GgufBuilder&) {});
  }

  std::string Path(int part) const {
    return folder_.File("m-0000" + std::to_string(part + 1) + "-of-00003.gguf");
  }
  // The regular part, to which `change` may add.
  void Write(int part, const std::function<void(GgufBuilder&)>& change) const {
    GgufBuilder builder = Keys(static_cast<uint16_t>(part), 3);
    builder.AddTensor("t" + std::to_string(part), {1}, {static_cast<float>(part)});
    change(builder);
    builder.WriteFile(Path(part));
  }
  static GgufBuilder Keys(uint16_t number, uint16_t count) {
    GgufBuilder builder;
    builder.Add("split.no", number).Add("split.count", count);
    if (number == 0) builder.Add("split.tensors.count", int32_t{count});
    return builder;
  }
  const TempFolder& folder() const { return folder_; }

 private:
  TempFolder folder_;
};

TEST(SplitGguf, DigestFollowsEveryPart) {
  SplitFolder parts;
  const auto original = GgufModel::Open(parts.Path(0));
  ASSERT_TRUE(original.ok()) << original.status();
  const auto again = GgufModel::Open(parts.Path(0));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(original->digest(), again->digest());
  parts.Write(2, [](GgufBuilder& builder) { builder.Add("more", 1); });
  const auto changed = GgufModel::Open(parts.Path(0));
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_NE(original->digest(), changed->digest());
}

TEST(SplitGguf, TheFirstPartMayHaveNoTensors) {
  SplitFolder parts;
  GgufBuilder first;
  first.Add("split.no", 0).Add("split.count", 3).Add("split.tensors.count", 2);
  first.WriteFile(parts.Path(0));
  const auto model = GgufModel::Open(parts.Path(0));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(FloatsOf(*model->FindTensor("t2")), std::vector<float>{2});
}

TEST(SplitGguf, RefusesAMissingPart) {
  SplitFolder parts;
  std::filesystem::remove(parts.Path(1));
  const auto model = GgufModel::Open(parts.Path(0));
  EXPECT_EQ(model.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(model.status()), HasSubstr(parts.Path(1)));
}

TEST(SplitGguf, RefusesADamagedPart) {
  SplitFolder parts;
  std::filesystem::resize_file(parts.Path(2), 30);
  ExpectError(GgufModel::Open(parts.Path(0)), parts.Path(2));
}

TEST(SplitGguf, RefusesAnotherPartThanTheFirst) {
  SplitFolder parts;
  ExpectError(GgufModel::Open(parts.Path(1)), "this is part 2 of 3; name the first part");
}

TEST(SplitGguf, RefusesPartsOfAnotherModel) {
  SplitFolder parts;
  std::filesystem::copy_file(parts.Path(2), parts.Path(1),
                             std::filesystem::copy_options::overwrite_existing);
  ExpectError(GgufModel::Open(parts.Path(0)), "it says it is part 3 of 3, not part 2 of 3");
  SplitFolder::Keys(1, 4).AddTensor("t1", {1}, {1}).WriteFile(parts.Path(1));
  ExpectError(GgufModel::Open(parts.Path(0)), "it says it is part 2 of 4, not part 2 of 3");
  GgufBuilder().AddTensor("t1", {1}, {1}).WriteFile(parts.Path(1));
  ExpectError(GgufModel::Open(parts.Path(0)), "it says it is part 1 of 1, not part 2 of 3");
}

TEST(SplitGguf, RefusesATensorInTwoParts) {
  SplitFolder parts;
  parts.Write(2, [](GgufBuilder& builder) { builder.AddTensor("t0", {1}, {0}); });
  ExpectError(GgufModel::Open(parts.Path(0)), "tensor 't0' is in an earlier part too");
}

TEST(SplitGguf, RefusesAWrongNumberOfTensors) {
  SplitFolder parts;
  parts.Write(2, [](GgufBuilder& builder) { builder.AddTensor("t3", {1}, {0}); });
  ExpectError(GgufModel::Open(parts.Path(0)), "split.tensors.count is 3, the parts have 4 tensors");
}

TEST(SplitGguf, RefusesCountsThatAreNone) {
  TempFolder folder;
  for (const char* key : {"split.no", "split.count"}) {
    ExpectError(OpenBuilt(folder, GgufBuilder().Add(key, -1)),
                std::string(key) + " is not a count");
    ExpectError(OpenBuilt(folder, GgufBuilder().Add(key, "3")), "is not a count");
    ExpectError(OpenBuilt(folder, GgufBuilder().Add(key, UINT64_MAX)), "is not a count");
    ExpectError(OpenBuilt(folder, GgufBuilder().Add(key, std::vector<int32_t>{1})),
                "is not a count");
  }
}

// The other parts' names come from the path that was asked for, so a file cannot point elsewhere;
// and a file whose own name is not a part's has no other parts.
TEST(SplitGguf, RefusesNamesThatAreNotAFirstPart) {
  TempFolder folder;
  const GgufBuilder first = SplitFolder::Keys(0, 3);
  for (const char* name :
       {"model.gguf", "m-00001-of-00002.gguf", "m-00002-of-00003.gguf", "m-0001-of-0003.gguf",
        "m-00001-of-00003.ggml", "m-00001-of-00003.gguf.gguf", "m-0000a-of-00003.gguf",
        "m-00001-of-0000+.gguf", "m-00001_of_00003.gguf", "m_00001-of-00003.gguf"}) {
    first.WriteFile(folder.File(name));
    ExpectError(GgufModel::Open(folder.File(name)), "must be named x-00001-of-00003.gguf");
  }
  const std::string path = folder.File("m-00001-of-99999.gguf");
  GgufBuilder().Add("split.count", INT64_MAX).WriteFile(path);
  ExpectError(GgufModel::Open(path), "must be named x-00001-of-9223372036854775807.gguf");
}

TEST(SplitGguf, AFileThatIsItsOnlyPartMayHaveAnyName) {
  TempFolder folder;
  for (const uint16_t count : {0, 1}) {
    const auto model = OpenBuilt(folder, GgufBuilder().Add("split.count", count));
    EXPECT_TRUE(model.ok()) << model.status();
  }
}

}  // namespace
}  // namespace facet
