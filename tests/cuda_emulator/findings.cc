#include "tests/cuda_emulator/findings.h"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "base/check.h"

namespace facet::cuda_emulator {
namespace {

thread_local FindingCollector* innermost = nullptr;

}  // namespace

std::string Describe(const Place& place) {
  const std::string_view file = place.file_name();
  return fmt::format("{}:{}", file.substr(file.find_last_of('/') + 1), place.line());
}

std::string OutOfArray(int64_t element, int64_t count) {
  return fmt::format("touches element {} of a shared array of {}", element, count);
}

std::string NotAligned(uint64_t address, uint32_t alignment) {
  return fmt::format("takes {} bytes at {:#x}, which is no multiple", alignment, address);
}

std::string NoRoom(int64_t wanted, int64_t had) {
  return fmt::format("cuts {} bytes of shared memory, the launch gave {}", wanted, had);
}

std::string NoRoomForFixed(int64_t fixed, int64_t dynamic) {
  return fmt::format(
      "has {} bytes of fixed shared arrays and {} dynamic ones, more than a block gets", fixed,
      dynamic);
}

FindingCollector::FindingCollector() : outer_(std::exchange(innermost, this)) {}
FindingCollector::~FindingCollector() { innermost = outer_; }

void Report(Finding finding) {
  FACET_CHECK(innermost != nullptr, "{}", finding.text);
  innermost->findings_.push_back(std::move(finding));
}

}  // namespace facet::cuda_emulator
