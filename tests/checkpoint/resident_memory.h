#ifndef FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_
#define FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_

#include <cstdint>
#include <fstream>
#include <string>

namespace facet::testing {

// Bytes of mapped files that are in this process's resident memory now. Those of a tmpfs count as
// shared memory.
inline int64_t ResidentFileBytes() {
  std::ifstream status("/proc/self/status");
  int64_t bytes = 0;
  for (std::string word; status >> word;) {
    if (word != "RssFile:" && word != "RssShmem:") continue;
    int64_t kib = 0;
    status >> kib;
    bytes += kib * 1024;
  }
  return bytes;
}

}  // namespace facet::testing

#endif  // FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_
