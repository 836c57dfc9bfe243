// ParseGguf: the byte-level reader. Model files come from strangers, so every integer here is an
// attack until it has been compared with the bytes that are there.

#include <algorithm>
#include <bit>
#include <iterator>

#include "base/status.h"
#include "checkpoint/byte_reader.h"
#include "checkpoint/gguf.h"

namespace facet {
namespace {

// Generous for real models.
constexpr uint64_t kMinFileBytes = 24;
constexpr uint64_t kMaxMetadata = 65'536;
constexpr uint64_t kMaxTensors = 200'000;
constexpr uint64_t kMinMetadataBytes = 13;  // key length, type, one byte of value
constexpr uint64_t kMinTensorBytes = 24;    // name length, dimensions, type, offset
constexpr uint64_t kMaxKeyBytes = 65'535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint64_t kMaxStringBytes = 16 << 20;
constexpr uint64_t kMaxArrayElements = 16 << 20;
constexpr uint64_t kMaxDimension = uint64_t{1} << 40;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint32_t kDefaultAlignment = 32;
constexpr uint32_t kMaxAlignment = 1 << 20;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"

// Text from the file, fit for a log line.
std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 80;
  std::string quoted = "'";
  for (const char c : text.substr(0, kShown)) {
    if (c >= 0x20 && c < 0x7f) {
      quoted += c;
    } else {
      fmt::format_to(std::back_inserter(quoted), "\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  return quoted + (text.size() > kShown ? "...'" : "'");
}

// Bytes of one element; 0 for strings and arrays (no fixed size) and for unknown types.
uint64_t ScalarBytes(GgufValueType type) {
  switch (type) {
    case GgufValueType::kUint8:
    case GgufValueType::kInt8:
    case GgufValueType::kBool:
      return 1;
    case GgufValueType::kUint16:
    case GgufValueType::kInt16:
      return 2;
    case GgufValueType::kUint32:
    case GgufValueType::kInt32:
    case GgufValueType::kFloat32:
      return 4;
    case GgufValueType::kUint64:
    case GgufValueType::kInt64:
    case GgufValueType::kFloat64:
      return 8;
    case GgufValueType::kString:
    case GgufValueType::kArray:
      break;
  }
  return 0;
}

// What a tensor record says, before it is known where the data begins.
struct TensorRecord {
  uint64_t offset = 0;  // from the start of the tensor data
  uint64_t bytes = 0;
};

class GgufReader {
 public:
  explicit GgufReader(std::span<const std::byte> file) : file_(file), reader_(file) {}

  absl::StatusOr<GgufHeader> Read() {
    FACET_RETURN_IF_ERROR(ReadPreamble());
    for (uint64_t i = 0; i < metadata_count_; ++i) {
      FACET_RETURN_IF_ERROR(Annotate(ReadMetadata(), fmt::format("metadata record {}", i)));
    }
    FACET_RETURN_IF_ERROR(ReadAlignment());
    FACET_RETURN_IF_ERROR(CheckTensorCount());
    header_.tensors.reserve(tensor_count_);
    records_.reserve(tensor_count_);
    for (uint64_t i = 0; i < tensor_count_; ++i) {
      FACET_RETURN_IF_ERROR(Annotate(ReadTensor(), fmt::format("tensor record {}", i)));
    }
    FACET_RETURN_IF_ERROR(CheckNames());
    FACET_RETURN_IF_ERROR(PlaceData());
    return std::move(header_);
  }

 private:
  absl::Status Truncated(std::string_view what) const {
    return InvalidArgument("the file ends inside {} (offset {} of {})", what, reader_.offset(),
                           file_.size());
  }

  absl::Status ReadPreamble();
  absl::Status CheckVersion() const;
  absl::Status ReadMetadata();
  absl::Status ReadValue(GgufValue* value);
  absl::Status ReadArrayHead(GgufValue* value);
  absl::Status SkipStrings(uint64_t count);
  absl::Status ReadAlignment();
  absl::Status CheckTensorCount() const;
  absl::Status ReadTensor();
  absl::Status ReadTensorBody(GgufTensor* tensor, TensorRecord* record);
  absl::Status ReadShape(GgufTensor* tensor, uint64_t* elements);
  absl::Status CheckNames() const;
  absl::Status CheckOverlap() const;
  absl::Status PlaceData();

  std::span<const std::byte> file_;
  ByteReader reader_;
  GgufHeader header_;
  uint64_t metadata_count_ = 0;
  uint64_t tensor_count_ = 0;
  uint32_t alignment_ = kDefaultAlignment;
  std::vector<TensorRecord> records_;  // one per tensor of the header
};

absl::Status GgufReader::ReadPreamble() {
  if (file_.size() < kMinFileBytes) {
    return InvalidArgument("{} bytes are too few for a GGUF header", file_.size());
  }
  uint32_t magic = 0;
  reader_.Read(&magic);
  reader_.Read(&header_.version);
  reader_.Read(&tensor_count_);
  reader_.Read(&metadata_count_);
  if (magic != kMagic) return InvalidArgument("not a GGUF file (it begins {:08x})", magic);
  FACET_RETURN_IF_ERROR(CheckVersion());
  if (metadata_count_ > std::min(kMaxMetadata, reader_.remaining() / kMinMetadataBytes)) {
    return InvalidArgument("{} metadata records are more than the file can hold or than {}",
                           metadata_count_, kMaxMetadata);
  }
  // Once more after the metadata, against the bytes that are left then.
  return CheckTensorCount();
}

absl::Status GgufReader::CheckVersion() const {
  const uint32_t version = header_.version;
  if (version == 2 || version == 3) return absl::OkStatus();
  if (version != 0 && (version & 0xffff) == 0) {
    return InvalidArgument("big-endian GGUF is not supported");
  }
  return InvalidArgument("GGUF version {} is not supported (2 and 3 are)", version);
}

absl::Status GgufReader::ReadMetadata() {
  std::string_view key;
  if (!reader_.ReadString(&key)) return Truncated("a key");
  if (key.empty() || key.size() > kMaxKeyBytes) {
    return InvalidArgument("a key of {} bytes (1 to {} are allowed)", key.size(), kMaxKeyBytes);
  }
  const bool printable =
      std::all_of(key.begin(), key.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
  if (!printable) return InvalidArgument("key {} is not printable ASCII", Quoted(key));
  GgufValue value;
  FACET_RETURN_IF_ERROR(Annotate(ReadValue(&value), Quoted(key)));
  if (!header_.metadata.emplace(key, value).second) {
    return InvalidArgument("key {} occurs twice", Quoted(key));
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadValue(GgufValue* value) {
  uint32_t type = 0;
  if (!reader_.Read(&type)) return Truncated("a value's type");
  value->type = GgufValueType{type};
  if (value->type == GgufValueType::kArray) FACET_RETURN_IF_ERROR(ReadArrayHead(value));
  const uint64_t start = reader_.offset();
  if (value->type == GgufValueType::kString) {
    FACET_RETURN_IF_ERROR(SkipStrings(value->count));
  } else {
    const uint64_t bytes = ScalarBytes(value->type);
    if (bytes == 0)
      return InvalidArgument("unknown value type {}", static_cast<uint32_t>(value->type));
    if (reader_.remaining() / bytes < value->count) return Truncated("a value");
    std::span<const std::byte> skipped;
    reader_.Take(value->count * bytes, &skipped);
  }
  value->bytes = file_.subspan(start, reader_.offset() - start);
  return absl::OkStatus();
}

absl::Status GgufReader::ReadArrayHead(GgufValue* value) {
  uint32_t type = 0;
  if (!reader_.Read(&type) || !reader_.Read(&value->count)) return Truncated("an array's head");
  value->type = GgufValueType{type};
  value->is_array = true;
  if (value->type == GgufValueType::kArray) {
    return InvalidArgument("arrays of arrays are not supported");
  }
  if (value->count > kMaxArrayElements) {
    return InvalidArgument("an array of {} elements (at most {} are allowed)", value->count,
                           kMaxArrayElements);
  }
  return absl::OkStatus();
}

absl::Status GgufReader::SkipStrings(uint64_t count) {
  if (reader_.remaining() / sizeof(uint64_t) < count) return Truncated("strings");
  for (uint64_t i = 0; i < count; ++i) {
    std::string_view text;
    if (!reader_.ReadString(&text)) return Truncated("a string");
    if (text.size() > kMaxStringBytes) {
      return InvalidArgument("a string of {} bytes (at most {} are allowed)", text.size(),
                             kMaxStringBytes);
    }
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadAlignment() {
  const auto found = header_.metadata.find("general.alignment");
  if (found == header_.metadata.end()) return absl::OkStatus();
  const GgufValue& value = found->second;
  if (value.type != GgufValueType::kUint32 || value.is_array) {
    return InvalidArgument("general.alignment is not a UINT32");
  }
  ByteReader(value.bytes).Read(&alignment_);
  if (!std::has_single_bit(alignment_) || alignment_ > kMaxAlignment) {
    return InvalidArgument("general.alignment is {}, not a power of two up to {}", alignment_,
                           kMaxAlignment);
  }
  return absl::OkStatus();
}

absl::Status GgufReader::CheckTensorCount() const {
  if (tensor_count_ <= std::min(kMaxTensors, reader_.remaining() / kMinTensorBytes)) {
    return absl::OkStatus();
  }
  return InvalidArgument("{} tensors are more than the file can hold or than {}", tensor_count_,
                         kMaxTensors);
}

absl::Status GgufReader::ReadTensor() {
  GgufTensor tensor;
  if (!reader_.ReadString(&tensor.name)) return Truncated("a tensor's name");
  if (tensor.name.empty() || tensor.name.size() > kMaxTensorNameBytes) {
    return InvalidArgument("a tensor name of {} bytes (1 to {} are allowed)", tensor.name.size(),
                           kMaxTensorNameBytes);
  }
  const std::string name = Quoted(tensor.name);
  if (tensor.name.find('\0') != std::string_view::npos) {
    return InvalidArgument("tensor name {} has an embedded NUL", name);
  }
  TensorRecord record;
  FACET_RETURN_IF_ERROR(Annotate(ReadTensorBody(&tensor, &record), fmt::format("tensor {}", name)));
  header_.tensors.push_back(tensor);
  records_.push_back(record);
  return absl::OkStatus();
}

absl::Status GgufReader::ReadTensorBody(GgufTensor* tensor, TensorRecord* record) {
  uint64_t elements = 0;
  FACET_RETURN_IF_ERROR(ReadShape(tensor, &elements));
  uint32_t type = 0;
  if (!reader_.Read(&type) || !reader_.Read(&record->offset)) return Truncated("a tensor record");
  tensor->type = TensorType{type};
  const BlockFormat* format = FindBlockFormat(tensor->type);
  if (format == nullptr) return InvalidArgument("type {} is not supported", type);
  if (tensor->shape[0] % format->elements != 0) {
    return InvalidArgument("rows of {} elements are not whole {} blocks of {}", tensor->shape[0],
                           format->name, format->elements);
  }
  const uint64_t blocks = elements / static_cast<uint64_t>(format->elements);
  if (blocks > file_.size() / static_cast<uint64_t>(format->bytes)) {
    return InvalidArgument("{} {} blocks are more than the file holds", blocks, format->name);
  }
  record->bytes = blocks * static_cast<uint64_t>(format->bytes);  // at most the file's size
  if (record->offset % alignment_ != 0) {
    return InvalidArgument("offset {} is not a multiple of the alignment {}", record->offset,
                           alignment_);
  }
  return absl::OkStatus();
}

absl::Status GgufReader::ReadShape(GgufTensor* tensor, uint64_t* elements) {
  uint32_t dimensions = 0;
  if (!reader_.Read(&dimensions)) return Truncated("a tensor record");
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return InvalidArgument("{} dimensions (1 to {} are allowed)", dimensions, kMaxDimensions);
  }
  tensor->shape.fill(1);
  *elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    uint64_t dimension = 0;
    if (!reader_.Read(&dimension)) return Truncated("a tensor record");
    if (dimension < 1 || dimension > kMaxDimension) {
      return InvalidArgument("dimension {} is {} (1 to {} are allowed)", i, dimension,
                             kMaxDimension);
    }
    if (__builtin_mul_overflow(*elements, dimension, elements) || *elements > INT64_MAX) {
      return InvalidArgument("the product of the dimensions overflows");
    }
    tensor->shape[i] = static_cast<int64_t>(dimension);
  }
  return absl::OkStatus();
}

absl::Status GgufReader::CheckNames() const {
  std::vector<std::string_view> names;
  names.reserve(header_.tensors.size());
  for (const GgufTensor& tensor : header_.tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice == names.end()) return absl::OkStatus();
  return InvalidArgument("tensor {} occurs twice", Quoted(*twice));
}

// Gaps are legal, sharing is not. The sum of all sizes is bounded by this too.
absl::Status GgufReader::CheckOverlap() const {
  std::vector<size_t> order(records_.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [this](size_t a, size_t b) { return records_[a].offset < records_[b].offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    const TensorRecord& before = records_[order[i - 1]];
    if (before.offset + before.bytes > records_[order[i]].offset) {
      return InvalidArgument("tensors {} and {} overlap",
                             Quoted(header_.tensors[order[i - 1]].name),
                             Quoted(header_.tensors[order[i]].name));
    }
  }
  return absl::OkStatus();
}

absl::Status GgufReader::PlaceData() {
  header_.header_bytes = reader_.offset();
  if (records_.empty()) return absl::OkStatus();
  // Cannot wrap: the offset is at most the file's size, which is far below 2^63.
  const uint64_t data_start = (reader_.offset() + alignment_ - 1) / alignment_ * alignment_;
  if (data_start > file_.size()) return Truncated("the padding before the tensor data");
  header_.header_bytes = data_start;
  const std::span<const std::byte> data = file_.subspan(data_start);
  for (size_t i = 0; i < records_.size(); ++i) {
    const TensorRecord& record = records_[i];
    GgufTensor& tensor = header_.tensors[i];
    if (record.bytes > data.size() || record.offset > data.size() - record.bytes) {
      return InvalidArgument("tensor {}: {} bytes at offset {} end beyond the {} bytes of data",
                             Quoted(tensor.name), record.bytes, record.offset, data.size());
    }
    tensor.data = data.subspan(record.offset, record.bytes);
  }
  return CheckOverlap();
}

}  // namespace

absl::StatusOr<GgufHeader> ParseGguf(std::span<const std::byte> file) {
  return GgufReader(file).Read();
}

}  // namespace facet
