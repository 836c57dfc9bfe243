#ifndef FACET_CHECKPOINT_BYTE_READER_H_
#define FACET_CHECKPOINT_BYTE_READER_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace facet {

// Walks bytes somebody else wrote. Every read says whether the bytes were there; a read that fails
// moves nothing and leaves `out` alone.
class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  template <typename T>
  bool Read(T* out) {
    static_assert(std::is_arithmetic_v<T>);
    if (remaining() < sizeof(T)) return false;
    std::memcpy(out, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return true;
  }

  bool Take(uint64_t count, std::span<const std::byte>* out) {
    if (remaining() < count) return false;
    *out = bytes_.subspan(offset_, count);
    offset_ += count;
    return true;
  }

  // A GGUF string: its length as 64 bits, then that many bytes.
  bool ReadString(std::string_view* out) {
    const uint64_t start = offset_;
    uint64_t length;
    std::span<const std::byte> text;
    if (!Read(&length) || !Take(length, &text)) {
      offset_ = start;
      return false;
    }
    *out = {reinterpret_cast<const char*>(text.data()), text.size()};
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t offset_ = 0;
};

}  // namespace facet

#endif  // FACET_CHECKPOINT_BYTE_READER_H_
