#include "kernels/cuda/row_layout.h"

#include <cstring>

namespace facet::cuda {
namespace {

constexpr int kScaleBytes = 2;

bool LiesInPairs(const BlockFormat& format) {
  return format.elements > 1 && format.bytes % 4 == kScaleBytes;
}

}  // namespace

int64_t DeviceRowBytes(TensorType type, int64_t columns) {
  const BlockFormat& format = FormatOf(type);
  const int64_t blocks = columns / format.elements;
  return (LiesInPairs(format) ? blocks + blocks % 2 : blocks) * format.bytes;
}

void LayOutRow(TensorType type, const std::byte* from, int64_t columns, std::byte* to) {
  const BlockFormat& format = FormatOf(type);
  if (!LiesInPairs(format)) {
    std::memcpy(to, from, static_cast<size_t>(RowBytes(type, columns)));
    return;
  }
  const int body = format.bytes - kScaleBytes;
  const bool scale_last = type == TensorType::kQ6_K;
  for (int64_t i = 0; i < columns / format.elements; ++i, from += format.bytes) {
    std::byte* const pair = to + i / 2 * 2 * format.bytes;
    std::memcpy(pair + i % 2 * kScaleBytes, from + (scale_last ? body : 0), kScaleBytes);
    std::memcpy(pair + 2 * kScaleBytes + i % 2 * body, from + (scale_last ? 0 : kScaleBytes),
                static_cast<size_t>(body));
  }
}

}  // namespace facet::cuda
