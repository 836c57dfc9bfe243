#ifndef FACET_TESTS_CHECKPOINT_GGUF_BUILDER_H_
#define FACET_TESTS_CHECKPOINT_GGUF_BUILDER_H_

#include <cstdint>
#include <cstring>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/check.h"
#include "checkpoint/gguf.h"

namespace facet::testing {

template <typename T>
constexpr GgufValueType GgufTypeOf() {
  if constexpr (std::is_same_v<T, bool>) return GgufValueType::kBool;
  if constexpr (std::is_same_v<T, uint8_t>) return GgufValueType::kUint8;
  if constexpr (std::is_same_v<T, int8_t>) return GgufValueType::kInt8;
  if constexpr (std::is_same_v<T, uint16_t>) return GgufValueType::kUint16;
  if constexpr (std::is_same_v<T, int16_t>) return GgufValueType::kInt16;
  if constexpr (std::is_same_v<T, uint32_t>) return GgufValueType::kUint32;
  if constexpr (std::is_same_v<T, int32_t>) return GgufValueType::kInt32;
  if constexpr (std::is_same_v<T, uint64_t>) return GgufValueType::kUint64;
  if constexpr (std::is_same_v<T, int64_t>) return GgufValueType::kInt64;
  if constexpr (std::is_same_v<T, float>) return GgufValueType::kFloat32;
  if constexpr (std::is_same_v<T, double>) return GgufValueType::kFloat64;
}

// Writes GGUF files in memory, right ones and, through the Raw calls, wrong ones.
//
//   GgufBuilder builder;
//   builder.Add("general.architecture", "llama")
//       .Add("llama.block_count", uint32_t{2})
//       .Add("tokenizer.ggml.tokens", std::vector<std::string>{"a", "b"})
//       .AddTensor("output_norm.weight", {4}, {1, 1, 1, 1});
//   builder.WriteFile(path);
class GgufBuilder {
 public:
  // Scalars of one of GGUF's types, exactly as given: Add(key, uint32_t{1}), Add(key, 1.0f).
  template <typename T>
  requires std::is_arithmetic_v<T> GgufBuilder& Add(std::string_view key, T value) {
    return AddRaw(key, GgufTypeOf<T>(), BytesOf(value));
  }
  GgufBuilder& Add(std::string_view key, std::string_view text) {
    return AddRaw(key, GgufValueType::kString, StringBytes(text));
  }
  GgufBuilder& Add(std::string_view key, const char* text) {
    return Add(key, std::string_view(text));
  }
  // Arrays of scalars, or of strings.
  template <typename T>
  GgufBuilder& Add(std::string_view key, const std::vector<T>& values) {
    std::string elements;
    for (const T& value : values) {
      if constexpr (std::is_arithmetic_v<T>) {
        elements += BytesOf(value);
      } else {
        elements += StringBytes(value);
      }
    }
    if constexpr (std::is_arithmetic_v<T>) {
      return AddRawArray(key, GgufTypeOf<T>(), values.size(), elements);
    } else {
      return AddRawArray(key, GgufValueType::kString, values.size(), elements);
    }
  }
  GgufBuilder& AddRawArray(std::string_view key, GgufValueType type, uint64_t count,
                           std::string_view elements) {
    return AddRaw(key, GgufValueType::kArray,
                  BytesOf(static_cast<uint32_t>(type)) + BytesOf(count) + std::string(elements));
  }
  GgufBuilder& AddRaw(std::string_view key, GgufValueType type, std::string_view payload) {
    metadata_ += StringBytes(key) + BytesOf(static_cast<uint32_t>(type)) + std::string(payload);
    ++metadata_count_;
    return *this;
  }

  // Row length first: a matrix of `rows` x `columns` is {columns, rows}.
  GgufBuilder& AddTensor(std::string_view name, const std::vector<uint64_t>& shape,
                         const std::vector<float>& values) {
    return AddTensor(name, TensorType::kF32, shape, std::as_bytes(std::span(values)));
  }
  GgufBuilder& AddTensor(std::string_view name, TensorType type, const std::vector<uint64_t>& shape,
                         std::span<const std::byte> data) {
    data_.resize((data_.size() + alignment_ - 1) / alignment_ * alignment_);
    AddRawTensor(name, static_cast<uint32_t>(type), shape, data_.size());
    return AddRawData({reinterpret_cast<const char*>(data.data()), data.size()});
  }
  // A tensor's record alone; `offset` is relative to the tensor data.
  GgufBuilder& AddRawTensor(std::string_view name, uint32_t type,
                            const std::vector<uint64_t>& shape, uint64_t offset) {
    tensors_ += StringBytes(name) + BytesOf(static_cast<uint32_t>(shape.size()));
    for (const uint64_t dimension : shape) tensors_ += BytesOf(dimension);
    tensors_ += BytesOf(type) + BytesOf(offset);
    ++tensor_count_;
    return *this;
  }
  GgufBuilder& AddRawData(std::string_view data) {
    data_ += data;
    return *this;
  }

  // Before the first tensor: what later tensors are aligned to; 32 unless set.
  GgufBuilder& SetAlignment(uint32_t alignment) {
    alignment_ = alignment;
    return Add("general.alignment", alignment);
  }
  GgufBuilder& SetMagic(std::string_view magic) {
    magic_ = magic;
    return *this;
  }
  GgufBuilder& SetVersion(uint32_t version) {
    version_ = version;
    return *this;
  }
  // In place of the true counts.
  GgufBuilder& SetTensorCount(uint64_t count) {
    tensor_count_ = count;
    return *this;
  }
  GgufBuilder& SetMetadataCount(uint64_t count) {
    metadata_count_ = count;
    return *this;
  }

  // The file's bytes. The last tensor's data is not padded.
  std::string Build() const {
    std::string file = magic_ + BytesOf(version_) + BytesOf(tensor_count_) +
                       BytesOf(metadata_count_) + metadata_ + tensors_;
    if (!tensors_.empty()) file.resize((file.size() + alignment_ - 1) / alignment_ * alignment_);
    return file + data_;
  }

  void WriteFile(const std::string& path) const {
    const std::string file = Build();
    std::ofstream stream(path, std::ios::binary);
    stream.write(file.data(), static_cast<std::streamsize>(file.size()));
    stream.close();
    FACET_CHECK(stream.good(), "cannot write {}", path);
  }

  template <typename T>
  static std::string BytesOf(T value) {
    std::string bytes(sizeof(T), '\0');
    std::memcpy(bytes.data(), &value, sizeof(T));
    return bytes;
  }
  static std::string StringBytes(std::string_view text) {
    return BytesOf(uint64_t{text.size()}) + std::string(text);
  }

 private:
  std::string magic_ = "GGUF";
  uint32_t version_ = 3;
  uint32_t alignment_ = 32;
  uint64_t tensor_count_ = 0;
  uint64_t metadata_count_ = 0;
  std::string metadata_;
  std::string tensors_;
  std::string data_;
};

}  // namespace facet::testing

#endif  // FACET_TESTS_CHECKPOINT_GGUF_BUILDER_H_
