#ifndef FACET_TESTS_TOKENIZER_GOLDEN_READER_H_
#define FACET_TESTS_TOKENIZER_GOLDEN_READER_H_

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/ids.h"

namespace facet {

// Reads what the scripts in tests/golden/tokenizer write: varints, strings, little-endian numbers.
class GoldenReader {
 public:
  explicit GoldenReader(const std::string& name) {
    const std::string path = "tests/golden/tokenizer/" + name;
    std::ifstream file(path, std::ios::binary);
    FACET_CHECK(file.good(), "{} cannot be read", path);
    std::stringstream content;
    content << file.rdbuf();
    data_ = content.str();
  }

  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(data_.at(at_++));
      value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return value;
    }
  }
  std::string Bytes(size_t count) {
    FACET_CHECK(count <= data_.size() - at_);
    at_ += count;
    return data_.substr(at_ - count, count);
  }
  std::string String() { return Bytes(Varint()); }
  std::vector<TokenId> Ids() {
    std::vector<TokenId> ids(Varint());
    for (TokenId& id : ids) id = static_cast<TokenId>(Varint());
    return ids;
  }
  uint64_t LittleEndian(size_t size) {
    uint64_t value = 0;
    const std::string bytes = Bytes(size);
    for (size_t i = size; i-- > 0;) value = value << 8 | static_cast<uint8_t>(bytes[i]);
    return value;
  }
  bool AtEnd() const { return at_ == data_.size(); }

 private:
  std::string data_;
  size_t at_ = 0;
};

// The texts of corpus.py; not all of them are UTF-8.
inline std::vector<std::string> GoldenTexts() {
  GoldenReader reader("texts.bin");
  std::vector<std::string> texts(reader.Varint());
  for (std::string& text : texts) text = reader.String();
  return texts;
}

inline uint64_t Fnv1a(const std::string& text) {
  uint64_t hash = 0xCBF29CE484222325ull;
  for (const char byte : text) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001B3ull;
  return hash;
}

}  // namespace facet

#endif  // FACET_TESTS_TOKENIZER_GOLDEN_READER_H_
