#include "checkpoint/gguf.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "checkpoint/byte_reader.h"

namespace facet {
namespace {

// Four independent lanes, because one chain of multiplications would be slower than the memory.
uint64_t HashBytes(uint64_t seed, std::span<const std::byte> bytes) {
  constexpr size_t kLanes = 4;
  constexpr size_t kStride = kLanes * sizeof(uint64_t);
  uint64_t lanes[kLanes] = {seed, seed + 1, seed + 2, seed + 3};
  for (size_t at = 0; at < bytes.size(); at += kStride) {
    uint64_t words[kLanes] = {};
    std::memcpy(words, bytes.data() + at, std::min(kStride, bytes.size() - at));
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = Mix64(lanes[lane] ^ words[lane]);
  }
  uint64_t hash = bytes.size();
  for (const uint64_t lane : lanes) hash = Mix64(hash, lane);
  return hash;
}

template <typename T>
T Load(std::span<const std::byte> bytes, uint64_t index) {
  T value;
  std::memcpy(&value, bytes.data() + index * sizeof(T), sizeof(T));
  return value;
}

// Element `index` as an integer; nothing where the type is not one or the value does not fit.
std::optional<int64_t> IntegerAt(const GgufValue& value, uint64_t index) {
  switch (value.type) {
    case GgufValueType::kUint8:
      return Load<uint8_t>(value.bytes, index);
    case GgufValueType::kInt8:
      return Load<int8_t>(value.bytes, index);
    case GgufValueType::kUint16:
      return Load<uint16_t>(value.bytes, index);
    case GgufValueType::kInt16:
      return Load<int16_t>(value.bytes, index);
    case GgufValueType::kUint32:
      return Load<uint32_t>(value.bytes, index);
    case GgufValueType::kInt32:
      return Load<int32_t>(value.bytes, index);
    case GgufValueType::kInt64:
      return Load<int64_t>(value.bytes, index);
    case GgufValueType::kUint64: {
      const auto wide = Load<uint64_t>(value.bytes, index);
      if (wide > INT64_MAX) return std::nullopt;
      return static_cast<int64_t>(wide);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> NumberAt(const GgufValue& value, uint64_t index) {
  if (value.type == GgufValueType::kFloat32) return Load<float>(value.bytes, index);
  if (value.type == GgufValueType::kFloat64) return Load<double>(value.bytes, index);
  const std::optional<int64_t> integer = IntegerAt(value, index);
  if (!integer.has_value()) return std::nullopt;
  return static_cast<double>(*integer);
}

// The parser has walked the bytes, so the reads below cannot fail.
std::string_view NextString(ByteReader& reader) {
  std::string_view text;
  FACET_CHECK(reader.ReadString(&text));
  return text;
}

// How a part of a split model is named: `stem` + "-00002-of-00003.gguf".
struct PartName {
  std::string stem;
  int64_t part = 0;  // from 1
  int64_t count = 0;
};

// Five decimal digits at `at`, or nothing.
std::optional<int64_t> FiveDigits(std::string_view text, size_t at) {
  int64_t number = 0;
  for (const char c : text.substr(at, 5)) {
    if (c < '0' || c > '9') return std::nullopt;
    number = number * 10 + (c - '0');
  }
  return number;
}

std::optional<PartName> ParsePartName(std::string_view path) {
  constexpr std::string_view kShape = "-00000-of-00000.gguf";
  if (path.size() <= kShape.size()) return std::nullopt;
  const std::string_view suffix = path.substr(path.size() - kShape.size());
  const std::optional<int64_t> part = FiveDigits(suffix, 1);
  const std::optional<int64_t> count = FiveDigits(suffix, 10);
  if (suffix[0] != '-' || suffix.substr(6, 4) != "-of-" || suffix.substr(15) != ".gguf") {
    return std::nullopt;
  }
  if (!part.has_value() || !count.has_value()) return std::nullopt;
  return PartName{std::string(path.substr(0, path.size() - kShape.size())), *part, *count};
}

// A part's place in its model, from its metadata; a file that says nothing is the whole model.
struct PartPlace {
  int64_t number = 0;  // from 0
  int64_t count = 1;
};

absl::StatusOr<int64_t> SplitKey(const GgufHeader& header, std::string_view key,
                                 int64_t if_absent) {
  const auto found = header.metadata.find(key);
  if (found == header.metadata.end()) return if_absent;
  const std::optional<int64_t> value =
      found->second.is_array ? std::nullopt : IntegerAt(found->second, 0);
  if (!value.has_value() || *value < 0) return InvalidArgument("{} is not a count", key);
  return *value;
}

absl::StatusOr<PartPlace> PlaceOf(const GgufHeader& header) {
  PartPlace place;
  FACET_ASSIGN_OR_RETURN(place.number, SplitKey(header, "split.no", 0));
  FACET_ASSIGN_OR_RETURN(place.count, SplitKey(header, "split.count", 1));
  if (place.count == 0) place.count = 1;  // as some writers say "not split"
  return place;
}

}  // namespace

absl::StatusOr<GgufModel> GgufModel::Open(const std::string& path) {
  GgufModel model;
  FACET_RETURN_IF_ERROR(model.AddPart(path));
  FACET_RETURN_IF_ERROR(Annotate(model.AddOtherParts(), path));
  return model;
}

// Maps and parses one more part, and checks that it is the one its place asks for.
absl::Status GgufModel::AddPart(const std::string& path) {
  const auto part = static_cast<int>(files_.size());
  FACET_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  absl::StatusOr<GgufHeader> header = ParseGguf(file.bytes());
  if (!header.ok()) return Annotate(header.status(), path);
  digest_ =
      Mix64(HashBytes(digest_, file.bytes().first(header->header_bytes)), file.bytes().size());
  files_.push_back(std::move(file));
  std::vector<GgufTensor> tensors = std::move(header->tensors);
  if (part == 0) {
    header_ = *std::move(header);
    header_.tensors.clear();
  } else {
    const absl::StatusOr<PartPlace> first = PlaceOf(header_);
    const absl::StatusOr<PartPlace> place = PlaceOf(*header);
    if (!place.ok()) return Annotate(place.status(), path);
    if (place->number != part || place->count != first->count) {
      return InvalidArgument("{}: it says it is part {} of {}, not part {} of {}", path,
                             place->number + 1, place->count, part + 1, first->count);
    }
  }
  for (GgufTensor& tensor : tensors) {
    tensor.file = part;
    if (!tensor_index_.emplace(tensor.name, static_cast<int>(header_.tensors.size())).second) {
      return InvalidArgument("{}: tensor '{}' is in an earlier part too", path, tensor.name);
    }
    header_.tensors.push_back(tensor);
  }
  return absl::OkStatus();
}

absl::Status GgufModel::AddOtherParts() {
  FACET_ASSIGN_OR_RETURN(const PartPlace place, PlaceOf(header_));
  if (place.number != 0) {
    return InvalidArgument("this is part {} of {}; name the first part", place.number + 1,
                           place.count);
  }
  if (place.count == 1) return absl::OkStatus();
  const std::optional<PartName> name = ParsePartName(path());
  if (!name.has_value() || name->part != 1 || name->count != place.count) {
    return InvalidArgument("the first of {} parts must be named x-00001-of-{:05}.gguf", place.count,
                           place.count);
  }
  for (int64_t part = 2; part <= place.count; ++part) {
    FACET_RETURN_IF_ERROR(
        AddPart(fmt::format("{}-{:05}-of-{:05}.gguf", name->stem, part, place.count)));
  }
  const auto found = static_cast<int64_t>(tensors().size());
  FACET_ASSIGN_OR_RETURN(const int64_t expected, SplitKey(header_, "split.tensors.count", found));
  if (expected == found) return absl::OkStatus();
  return InvalidArgument("split.tensors.count is {}, the parts have {} tensors", expected, found);
}

const GgufTensor* GgufModel::FindTensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr
                                      : &header_.tensors[static_cast<size_t>(found->second)];
}

bool GgufModel::Has(std::string_view key) const { return header_.metadata.contains(key); }

absl::StatusOr<GgufValue> GgufModel::Find(std::string_view key) const {
  const auto found = header_.metadata.find(key);
  if (found == header_.metadata.end()) return NotFound("the file has no key '{}'", key);
  return found->second;
}

absl::StatusOr<std::string_view> GgufModel::GetString(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  if (value.is_array || value.type != GgufValueType::kString) {
    return InvalidArgument("'{}' is not a string", key);
  }
  ByteReader reader(value.bytes);
  return NextString(reader);
}

absl::StatusOr<int64_t> GgufModel::GetInt(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  const std::optional<int64_t> integer = value.is_array ? std::nullopt : IntegerAt(value, 0);
  if (!integer.has_value()) return InvalidArgument("'{}' is not an integer of 64 bits", key);
  return *integer;
}

absl::StatusOr<double> GgufModel::GetFloat(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  const std::optional<double> number = value.is_array ? std::nullopt : NumberAt(value, 0);
  if (!number.has_value() || !std::isfinite(*number)) {
    return InvalidArgument("'{}' is not a finite number", key);
  }
  return *number;
}

absl::StatusOr<bool> GgufModel::GetBool(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  if (value.is_array || value.type != GgufValueType::kBool) {
    return InvalidArgument("'{}' is not a boolean", key);
  }
  return Load<uint8_t>(value.bytes, 0) != 0;
}

absl::StatusOr<std::vector<std::string_view>> GgufModel::GetStrings(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  if (!value.is_array || value.type != GgufValueType::kString) {
    return InvalidArgument("'{}' is not an array of strings", key);
  }
  std::vector<std::string_view> strings;
  strings.reserve(value.count);
  ByteReader reader(value.bytes);
  for (uint64_t i = 0; i < value.count; ++i) strings.push_back(NextString(reader));
  return strings;
}

absl::StatusOr<std::vector<double>> GgufModel::GetNumbers(std::string_view key) const {
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  if (!value.is_array) return InvalidArgument("'{}' is not an array of numbers", key);
  std::vector<double> numbers;
  numbers.reserve(value.count);
  for (uint64_t i = 0; i < value.count; ++i) {
    const std::optional<double> number = NumberAt(value, i);
    if (!number.has_value()) return InvalidArgument("'{}' is not an array of numbers", key);
    numbers.push_back(*number);
  }
  return numbers;
}

absl::StatusOr<std::vector<int64_t>> GgufModel::GetPerLayer(std::string_view key,
                                                            int layers) const {
  FACET_CHECK(layers >= 0, "layers is {}", layers);
  FACET_ASSIGN_OR_RETURN(const GgufValue value, Find(key));
  if (!value.is_array) {
    FACET_ASSIGN_OR_RETURN(const int64_t scalar, GetInt(key));
    return std::vector<int64_t>(static_cast<size_t>(layers), scalar);
  }
  if (value.count != static_cast<uint64_t>(layers)) {
    return InvalidArgument("'{}' has {} entries for {} layers", key, value.count, layers);
  }
  std::vector<int64_t> entries;
  for (uint64_t i = 0; i < value.count; ++i) {
    const std::optional<int64_t> entry = value.type == GgufValueType::kBool
                                             ? int64_t{Load<uint8_t>(value.bytes, i) != 0}
                                             : IntegerAt(value, i);
    if (!entry.has_value()) return InvalidArgument("'{}' is not an array of integers", key);
    entries.push_back(*entry);
  }
  return entries;
}

void GgufModel::Release(const GgufTensor& tensor) const {
  files_[static_cast<size_t>(tensor.file)].Release(tensor.data);
}

void GgufModel::ReleaseAll() const {
  for (const MappedFile& file : files_) file.Release(file.bytes());
}

absl::Status GgufModel::Read(const GgufTensor& tensor, int64_t offset,
                             std::span<std::byte> to) const {
  const MappedFile& file = files_[static_cast<size_t>(tensor.file)];
  return file.Read(tensor.data.data() - file.bytes().data() + offset, to);
}

}  // namespace facet
