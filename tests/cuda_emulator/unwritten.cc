#include "tests/cuda_emulator/unwritten.h"

#include <algorithm>
#include <vector>

namespace facet::cuda_emulator {

int64_t FirstUnwritten(std::span<std::byte> output, const std::function<void()>& run) {
  constexpr std::byte kPatterns[] = {std::byte{0xff}, std::byte{0x00}};
  std::vector<bool> kept(output.size(), true);
  for (const std::byte pattern : kPatterns) {
    std::fill(output.begin(), output.end(), pattern);
    run();
    for (size_t i = 0; i < output.size(); ++i) kept[i] = kept[i] && output[i] == pattern;
  }
  const auto first = std::find(kept.begin(), kept.end(), true);
  return first == kept.end() ? -1 : first - kept.begin();
}

}  // namespace facet::cuda_emulator
