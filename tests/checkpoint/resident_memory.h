#ifndef FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_
#define FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_

#include <cstdint>
#include <fstream>
#include <string>

namespace facet::testing {

// Bytes of mapped files that are in this process's resident memory now.
inline int64_t ResidentFileBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "RssFile:") continue;
    int64_t kib = 0;
    status >> kib;
    return kib * 1024;
  }
  return -1;
}

}  // namespace facet::testing

#endif  // FACET_TESTS_CHECKPOINT_RESIDENT_MEMORY_H_
