// Any bytes as a file of packed weights: whatever they say, nothing outside the file is read, and
// only the wanted file passes. The first byte decides how long the file is and whether its checksum
// is put right, so that what the checksum guards is reached too.

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/check.h"
#include "checkpoint/packed_file.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

const PackedFileSpec kSpec = {.key = "key", .sections = 3, .data_bytes = 100};
constexpr size_t kHeadBytes = 40 + 8 + 3 * sizeof(uint64_t);

void CorrectChecksum(std::vector<std::byte>* head) {
  if (head->size() < kHeadBytes) return;
  const uint64_t sum = XXH3_64bits(head->data() + 16, kHeadBytes - 16);
  std::memcpy(head->data() + 8, &sum, sizeof(sum));
}

// What a head that passes must say.
void CheckHead(std::span<const std::byte> head, std::span<const std::byte> table) {
  FACET_CHECK(std::memcmp(head.data(), "facetPK\n", 8) == 0);
  FACET_CHECK(std::memcmp(head.data() + 40, "key", 3) == 0);
  FACET_CHECK(table.size() == 3 * sizeof(uint64_t));
  FACET_CHECK(table.data() >= head.data());
  FACET_CHECK(table.data() + table.size() <= head.data() + head.size());
}

void CheckOpen(const std::string& path, std::span<const std::byte> head, int64_t size) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  FACET_CHECK(descriptor >= 0 &&
              ::pwrite(descriptor, head.data(), head.size(), 0) ==
                  static_cast<ssize_t>(head.size()) &&
              ::ftruncate(descriptor, size) == 0);
  ::close(descriptor);
  const auto file = PackedFile::Open(path, kSpec);
  if (!file.ok()) return;
  FACET_CHECK(size == PackedFileBytes(kSpec));
  PackedFile::Populate(file->data());
  uint64_t sum = PieceChecksum(0, file->data());
  for (int64_t i = 0; i < kSpec.sections; ++i) sum += file->checksum(i);
  static volatile uint64_t sink;
  sink = sum;
}

}  // namespace
}  // namespace facet

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto* folder = new facet::testing::TempFolder;
  if (size == 0) return 0;
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  std::vector<std::byte> head(bytes + 1, bytes + size);
  if (data[0] % 2 == 1) facet::CorrectChecksum(&head);
  const int64_t whole = facet::PackedFileBytes(facet::kSpec);
  const int64_t sizes[] = {whole, whole, whole - 1, static_cast<int64_t>(head.size())};
  const int64_t file_size = sizes[data[0] / 2 % 4];
  const auto table = facet::ParsePackedHead(head, file_size, facet::kSpec);
  if (!table.ok()) return 0;
  facet::CheckHead(head, *table);
  facet::CheckOpen(folder->File("file"), head, file_size);
  return 0;
}
