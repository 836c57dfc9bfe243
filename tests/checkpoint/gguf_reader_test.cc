// ParseGguf against right, wrong and hostile files. The numbers of the attacks are those of the
// advisories against other GGUF readers.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "checkpoint/gguf.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/checkpoint/gguf_soundness.h"

namespace facet {
namespace {

using testing::GgufBuilder;
using ::testing::HasSubstr;

constexpr uint32_t kF32 = 0;

// Parses a copy that ends where its allocation ends, so that the address sanitizer sees a read of
// one byte too many, and answers with the error's text, empty for a sound header.
std::string ErrorOf(std::string_view file) {
  const auto copy = std::make_unique<std::byte[]>(file.size());
  std::copy_n(reinterpret_cast<const std::byte*>(file.data()), file.size(), copy.get());
  const std::span<const std::byte> bytes(copy.get(), file.size());
  const absl::StatusOr<GgufHeader> header = ParseGguf(bytes);
  if (header.ok()) {
    testing::CheckSound(*header, bytes);
    return "";
  }
  EXPECT_EQ(header.status().code(), absl::StatusCode::kInvalidArgument);
  return MessageOf(header.status());
}

// One of everything, ending with a tensor.
GgufBuilder Sample() {
  GgufBuilder builder;
  builder.Add("general.architecture", "test")
      .Add("a.u8", uint8_t{1})
      .Add("a.u16", uint16_t{1})
      .Add("a.u32", uint32_t{1})
      .Add("a.u64", uint64_t{1})
      .Add("a.f64", 1.0)
      .Add("a.bool", true)
      .Add("a.numbers", std::vector<int32_t>{1, 2, 3})
      .Add("a.strings", std::vector<std::string>{"one", "", std::string("\xff\0\xfe", 3)})
      .AddTensor("one", {4}, {1, 2, 3, 4})
      .AddTensor("two", TensorType::kQ8_0, {32, 2}, std::vector<std::byte>(68))
      .AddTensor("three", {1, 2, 1, 3}, {1, 2, 3, 4, 5, 6});
  return builder;
}

TEST(ParseGguf, ReadsScalarsArraysAndTensors) {
  const std::string file = Sample().Build();
  const auto header = ParseGguf(std::as_bytes(std::span(file)));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->version, 3u);
  EXPECT_EQ(header->metadata.size(), 9u);
  const GgufValue& strings = header->metadata.at("a.strings");
  EXPECT_TRUE(strings.is_array);
  EXPECT_EQ(strings.type, GgufValueType::kString);
  EXPECT_EQ(strings.count, 3u);
  EXPECT_EQ(strings.bytes.size(), 3 * 8u + 6);
  ASSERT_EQ(header->tensors.size(), 3u);
  const GgufTensor& two = header->tensors[1];
  EXPECT_EQ(two.name, "two");
  EXPECT_EQ(two.type, TensorType::kQ8_0);
  EXPECT_EQ(two.shape, (std::array<int64_t, 4>{32, 2, 1, 1}));
  EXPECT_EQ(two.data.size(), 68u);
  EXPECT_EQ(header->tensors[2].shape, (std::array<int64_t, 4>{1, 2, 1, 3}));
  EXPECT_EQ(header->tensors[2].data.data() - reinterpret_cast<const std::byte*>(file.data()),
            static_cast<ptrdiff_t>(header->header_bytes + 32 + 96));
}

TEST(ParseGguf, AcceptsWhatWritersDo) {
  EXPECT_EQ(ErrorOf(Sample().SetVersion(2).Build()), "");
  EXPECT_EQ(ErrorOf(GgufBuilder().Build()), "") << "no metadata and no tensors";
  EXPECT_EQ(ErrorOf(Sample().Build() + std::string(32, '\0')), "") << "padding at the end";
  EXPECT_EQ(ErrorOf(GgufBuilder().Add("a", std::vector<std::string>()).Build()), "");
  for (const uint32_t alignment : {1u, 8u, 64u, 4096u}) {
    GgufBuilder builder;
    builder.SetAlignment(alignment).AddTensor("a", {3}, {1, 2, 3}).AddTensor("b", {1}, {1});
    EXPECT_EQ(ErrorOf(builder.Build()), "") << alignment;
  }
  GgufBuilder gap;
  gap.AddRawTensor("b", kF32, {1}, 64)
      .AddRawTensor("a", kF32, {1}, 0)
      .AddRawData(std::string(68, 0));
  EXPECT_EQ(ErrorOf(gap.Build()), "") << "a gap, and tensors not in the order of their data";
  EXPECT_EQ(ErrorOf(GgufBuilder().AddTensor(std::string(64, 'n'), {1}, {1}).Build()), "");
}

TEST(ParseGguf, RefusesEveryTruncation) {
  const std::string file = Sample().Build();
  ASSERT_EQ(ErrorOf(file), "");
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_NE(ErrorOf(std::string_view(file).substr(0, size)), "") << "at " << size;
  }
}

TEST(ParseGguf, SurvivesEveryChangedByte) {
  const std::string file = Sample().Build();
  int accepted = 0;
  for (size_t at = 0; at < file.size(); ++at) {
    for (const int change : {0x01, 0x80, 0xff}) {
      std::string changed = file;
      changed[at] = static_cast<char>(changed[at] ^ change);
      accepted += ErrorOf(changed).empty();
    }
  }
  // Text and tensor data may hold anything, lengths and types may not.
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, static_cast<int>(3 * file.size()));
}

struct Attack {
  const char* name;
  std::function<void(GgufBuilder&)> build;
  const char* error;
};

class HostileGguf : public ::testing::TestWithParam<Attack> {};

TEST_P(HostileGguf, IsRefusedWithASentence) {
  GgufBuilder builder;
  GetParam().build(builder);
  EXPECT_THAT(ErrorOf(builder.Build()), HasSubstr(GetParam().error));
}

constexpr uint64_t kHuge = UINT64_MAX;

std::string U64(uint64_t value) { return GgufBuilder::BytesOf(value); }

const Attack kPreambleAttacks[] = {
    {"NotGguf", [](auto& b) { b.SetMagic("GGML"); }, "not a GGUF file"},
    {"VersionOne", [](auto& b) { b.SetVersion(1); }, "GGUF version 1 is not supported"},
    {"VersionFour", [](auto& b) { b.SetVersion(4); }, "GGUF version 4 is not supported"},
    {"VersionZero", [](auto& b) { b.SetVersion(0); }, "GGUF version 0 is not supported"},
    {"BigEndian", [](auto& b) { b.SetVersion(0x03000000); }, "big-endian"},
    // CVE-2024-23496 and its neighbours: counts that wrap when multiplied by a record's size.
    {"HugeMetadataCount", [](auto& b) { b.SetMetadataCount(kHuge); }, "metadata records are more"},
    {"WrappingMetadataCount", [](auto& b) { b.SetMetadataCount(kHuge / 13 + 1); },
     "metadata records are more"},
    {"HugeTensorCount", [](auto& b) { b.SetTensorCount(kHuge); }, "tensors are more"},
    {"WrappingTensorCount", [](auto& b) { b.SetTensorCount(kHuge / 24 + 1); }, "tensors are more"},
    {"CountBeyondTheFile", [](auto& b) { b.Add("a", 1).SetMetadataCount(2); },
     "metadata records are more"},
    {"CountBeyondTheLimit",
     [](auto& b) { b.AddRawData(std::string(65537 * 13, 0)).SetMetadataCount(65537); },
     "metadata records are more"},
    {"TensorsBeyondTheLimit",
     [](auto& b) { b.AddRawData(std::string(200001 * 24, 0)).SetTensorCount(200001); },
     "tensors are more"},
    {"TensorsWhereMetadataWas",
     [](auto& b) { b.Add("a", std::string(100, 'x')).SetTensorCount(4); }, "tensors are more"},
};

const Attack kMetadataAttacks[] = {
    {"HugeKeyLength", [](auto& b) { b.AddRawData(U64(kHuge) + "abcdefgh").SetMetadataCount(1); },
     "the file ends inside a key"},
    {"EmptyKey", [](auto& b) { b.Add("", 1); }, "a key of 0 bytes"},
    {"LongKey", [](auto& b) { b.Add(std::string(65536, 'k'), 1); }, "a key of 65536 bytes"},
    {"NulInKey", [](auto& b) { b.Add(std::string_view("a\0b", 3), 1); },
     "'a\\x00b' is not printable"},
    {"EscapeInKey", [](auto& b) { b.Add("a\x1b[2J", 1); }, "'a\\x1b[2J' is not printable"},
    {"DuplicateKey", [](auto& b) { b.Add("a.b", 1).Add("c", 1).Add("a.b", 2); },
     "metadata record 2: key 'a.b' occurs twice"},
    {"UnknownValueType", [](auto& b) { b.AddRaw("a", GgufValueType{13}, U64(0)); },
     "unknown value type 13"},
    {"NegativeValueType", [](auto& b) { b.AddRaw("a", GgufValueType{kHuge & 0xffffffff}, U64(0)); },
     "unknown value type 4294967295"},
    // A length whose successor is zero: CVE-2024-21825 allocated length + 1.
    {"StringLengthThatWraps", [](auto& b) { b.AddRaw("a", GgufValueType::kString, U64(kHuge)); },
     "'a': the file ends inside a string"},
    {"StringBeyondTheFile",
     [](auto& b) { b.AddRaw("a", GgufValueType::kString, U64(9) + "12345678"); },
     "'a': the file ends inside a string"},
    {"StringBeyondTheLimit", [](auto& b) { b.Add("a", std::string((16 << 20) + 1, 'x')); },
     "a string of 16777217 bytes"},
    {"ArrayOfArrays",
     [](auto& b) {
       b.AddRawArray("a", GgufValueType::kArray, 1, GgufBuilder::BytesOf(uint32_t{4}) + U64(0));
     },
     "arrays of arrays"},
    {"ArrayOfUnknown", [](auto& b) { b.AddRawArray("a", GgufValueType{77}, 0, ""); },
     "unknown value type 77"},
    {"HugeArray", [](auto& b) { b.AddRawArray("a", GgufValueType::kUint8, kHuge, "x"); },
     "an array of 18446744073709551615 elements"},
    // 2^61 + 1 elements of 8 bytes are 8 bytes, if the product may wrap.
    {"ArrayThatWraps",
     [](auto& b) { b.AddRawArray("a", GgufValueType::kUint64, (kHuge >> 3) + 2, U64(0)); },
     "an array of 2305843009213693953 elements"},
    {"ArrayBeyondTheFile", [](auto& b) { b.AddRawArray("a", GgufValueType::kInt32, 3, U64(0)); },
     "'a': the file ends inside a value"},
    {"StringsBeyondTheFile",
     [](auto& b) { b.AddRawArray("a", GgufValueType::kString, 1 << 24, U64(0)); },
     "'a': the file ends inside strings"},
    {"StringInArrayBeyondTheFile",
     [](auto& b) {
       b.AddRawArray("a", GgufValueType::kString, 2, U64(3) + U64(kHuge - 7) + "abc");
     },
     "'a': the file ends inside a string"},
};

const Attack kAlignmentAttacks[] = {
    {"Zero", [](auto& b) { b.Add("general.alignment", uint32_t{0}); }, "general.alignment is 0"},
    {"NoPowerOfTwo", [](auto& b) { b.Add("general.alignment", uint32_t{24}); },
     "general.alignment is 24"},
    // The padding of sizes wraps for large alignments: GHSA-96jg-mvhq-q7q7.
    {"Huge", [](auto& b) { b.Add("general.alignment", uint32_t{1} << 31); },
     "general.alignment is 2147483648"},
    {"Wide", [](auto& b) { b.Add("general.alignment", uint64_t{32}); }, "is not a UINT32"},
    {"Text", [](auto& b) { b.Add("general.alignment", "32"); }, "is not a UINT32"},
    {"Array", [](auto& b) { b.Add("general.alignment", std::vector<uint32_t>()); },
     "is not a UINT32"},
    {"BeyondTheFile",
     [](auto& b) { b.Add("general.alignment", uint32_t{1} << 20).AddRawTensor("a", kF32, {1}, 0); },
     "the file ends inside the padding"},
};

// A file with one tensor record and 64 bytes of data.
std::function<void(GgufBuilder&)> Tensor(std::string name, uint32_t type,
                                         std::vector<uint64_t> shape, uint64_t offset = 0) {
  return [=](GgufBuilder& b) {
    b.AddRawTensor(name, type, shape, offset).AddRawData(std::string(64, '\0'));
  };
}

const Attack kTensorAttacks[] = {
    {"EmptyName", Tensor("", kF32, {1}), "a tensor name of 0 bytes"},
    {"LongName", Tensor(std::string(65, 'n'), kF32, {1}), "a tensor name of 65 bytes"},
    {"NulInName", Tensor(std::string("a\0b", 3), kF32, {1}), "'a\\x00b' has an embedded NUL"},
    {"HugeNameLength",
     [](auto& b) { b.AddRawData(U64(kHuge) + std::string(64, 0)).SetTensorCount(1); },
     "the file ends inside a tensor's name"},
    {"DuplicateName",
     [](auto& b) { b.AddTensor("a", {1}, {1}).AddTensor("b", {1}, {1}).AddTensor("a", {1}, {1}); },
     "tensor 'a' occurs twice"},
    {"NoDimensions", Tensor("a", kF32, {}), "tensor 'a': 0 dimensions"},
    {"FiveDimensions", Tensor("a", kF32, {1, 1, 1, 1, 1}), "tensor 'a': 5 dimensions"},
    {"ZeroDimension", Tensor("a", kF32, {4, 0}), "tensor 'a': dimension 1 is 0"},
    {"HugeDimension", Tensor("a", kF32, {1, (uint64_t{1} << 40) + 1}),
     "tensor 'a': dimension 1 is"},
    {"NegativeDimension", Tensor("a", kF32, {kHuge}), "tensor 'a': dimension 0 is"},
    // CVE-2024-21802: 2^32 x 2^32 elements are none, if the product may wrap.
    {"DimensionsThatWrap", Tensor("a", kF32, {uint64_t{1} << 32, uint64_t{1} << 32}),
     "tensor 'a': the product of the dimensions overflows"},
    {"DimensionsBeyondSigned", Tensor("a", kF32, {uint64_t{1} << 40, uint64_t{1} << 23}),
     "tensor 'a': the product of the dimensions overflows"},
    // 2^62 elements of 4 bytes are none, if the size may wrap: GHSA-96jg-mvhq-q7q7.
    {"SizeThatWraps", Tensor("a", kF32, {uint64_t{1} << 31, uint64_t{1} << 31}),
     "blocks are more than the file holds"},
    {"NotReadType", Tensor("a", 16, {256}), "tensor 'a': type 16 is not supported"},
    {"RemovedType", Tensor("a", 4, {32}), "tensor 'a': type 4 is not supported"},
    {"ActivationType", Tensor("a", 9, {32}), "tensor 'a': type 9 is not supported"},
    {"ForkType", Tensor("a", 137, {32}), "tensor 'a': type 137 is not supported"},
    {"NegativeType", Tensor("a", 0xffffffff, {32}), "tensor 'a': type 4294967295 is not supported"},
    {"FractionOfABlock", Tensor("a", 8, {33}), "are not whole Q8_0 blocks of 32"},
    {"FractionOfABlockPerRow", Tensor("a", 12, {128, 2}), "are not whole Q4_K blocks of 256"},
    // CVE-2026-7482: more rows than data, read out of bounds.
    {"LargerThanItsData", Tensor("a", kF32, {16, 2}), "end beyond the 64 bytes of data"},
    {"OffsetBeyondTheData", Tensor("a", kF32, {1}, 64), "end beyond the 64 bytes of data"},
    {"EndBeyondTheData", Tensor("a", kF32, {9}, 32), "end beyond the 64 bytes of data"},
    {"OffsetThatWraps", Tensor("a", kF32, {16}, kHuge - 31), "end beyond the 64 bytes of data"},
    {"UnalignedOffset", Tensor("a", kF32, {1}, 4),
     "offset 4 is not a multiple of the alignment 32"},
    // The sum of sizes that each fit wrapped in CVE-2025-53630.
    {"Overlap",
     [](auto& b) {
       b.AddRawTensor("a", kF32, {16}, 0).AddRawTensor("b", kF32, {8}, 32);
       b.AddRawData(std::string(64, '\0'));
     },
     "tensors 'a' and 'b' overlap"},
    {"SameData",
     [](auto& b) {
       b.AddRawTensor("a", kF32, {8}, 0).AddRawTensor("b", kF32, {8}, 0);
       b.AddRawData(std::string(64, '\0'));
     },
     "overlap"},
    {"OverlapWithALaterOne",
     [](auto& b) {
       b.AddRawTensor("a", kF32, {8}, 64).AddRawTensor("b", kF32, {8}, 0);
       b.AddRawTensor("c", kF32, {24}, 0).AddRawData(std::string(96, '\0'));
     },
     "overlap"},
    {"RecordCutByTheEnd",
     [](auto& b) {
       b.AddRawData(U64(1) + "a" + GgufBuilder::BytesOf(uint32_t{1}) + U64(1) + U64(0));
       b.SetTensorCount(1);
     },
     "tensor 'a': the file ends inside a tensor record (offset 49 of 53)"},
};

std::string NameOfAttack(const ::testing::TestParamInfo<Attack>& info) { return info.param.name; }

INSTANTIATE_TEST_SUITE_P(Preamble, HostileGguf, ::testing::ValuesIn(kPreambleAttacks),
                         NameOfAttack);
INSTANTIATE_TEST_SUITE_P(Metadata, HostileGguf, ::testing::ValuesIn(kMetadataAttacks),
                         NameOfAttack);
INSTANTIATE_TEST_SUITE_P(Alignment, HostileGguf, ::testing::ValuesIn(kAlignmentAttacks),
                         NameOfAttack);
INSTANTIATE_TEST_SUITE_P(Tensors, HostileGguf, ::testing::ValuesIn(kTensorAttacks), NameOfAttack);

TEST(ParseGguf, RefusesTinyFiles) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("0 bytes are too few"));
  EXPECT_THAT(ErrorOf("GGUF"), HasSubstr("4 bytes are too few"));
  EXPECT_THAT(ErrorOf(std::string(23, '\0')), HasSubstr("23 bytes are too few"));
  EXPECT_THAT(ErrorOf(std::string(24, '\0')), HasSubstr("not a GGUF file"));
}

// As many as the limit allows. A quadratic search for duplicates or overlaps would take minutes.
TEST(ParseGguf, ReadsManyTensorsInReasonableTime) {
  GgufBuilder builder;
  for (uint64_t i = 0; i < 200000; ++i) {
    builder.AddRawTensor(std::to_string(i), kF32, {1}, 32 * i);
  }
  builder.AddRawData(std::string(200000 * 32, '\0'));
  EXPECT_EQ(ErrorOf(builder.Build()), "");
}

}  // namespace
}  // namespace facet
