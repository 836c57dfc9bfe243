#ifndef FACET_TESTS_CHECKPOINT_GGUF_SOUNDNESS_H_
#define FACET_TESTS_CHECKPOINT_GGUF_SOUNDNESS_H_

#include <algorithm>
#include <cstddef>
#include <set>
#include <span>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "checkpoint/gguf.h"

namespace facet::testing {

inline bool Inside(std::span<const std::byte> inner, std::span<const std::byte> outer) {
  return inner.data() >= outer.data() && inner.data() + inner.size() <= outer.data() + outer.size();
}

// Ends the process unless `header` keeps ParseGguf's promises about `file`, whatever the file was.
inline void CheckSound(const GgufHeader& header, std::span<const std::byte> file) {
  FACET_CHECK(header.version == 2 || header.version == 3);
  FACET_CHECK(header.header_bytes <= file.size());
  for (const auto& [key, value] : header.metadata) {
    FACET_CHECK(!key.empty() && Inside(std::as_bytes(std::span(key)), file));
    FACET_CHECK(value.type != GgufValueType::kArray && Inside(value.bytes, file));
    FACET_CHECK(value.is_array || value.count == 1);
  }
  const std::span<const std::byte> data = file.subspan(header.header_bytes);
  std::set<std::string_view> names;
  std::vector<std::span<const std::byte>> ranges;
  for (const GgufTensor& tensor : header.tensors) {
    FACET_CHECK(names.insert(tensor.name).second);
    FACET_CHECK(FindBlockFormat(tensor.type) != nullptr);
    for (const int64_t dimension : tensor.shape) FACET_CHECK(dimension >= 1);
    const int64_t row_bytes = RowBytes(tensor.type, tensor.shape[0]);
    const int64_t rows = tensor.elements() / tensor.shape[0];
    FACET_CHECK(static_cast<int64_t>(tensor.data.size()) / row_bytes == rows &&
                static_cast<int64_t>(tensor.data.size()) % row_bytes == 0);
    FACET_CHECK(Inside(tensor.data, data));
    ranges.push_back(tensor.data);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.data() < b.data(); });
  for (size_t i = 1; i < ranges.size(); ++i) {
    FACET_CHECK(ranges[i - 1].data() + ranges[i - 1].size() <= ranges[i].data());
  }
}

}  // namespace facet::testing

#endif  // FACET_TESTS_CHECKPOINT_GGUF_SOUNDNESS_H_
