#ifndef FACET_TESTS_CUDA_EMULATOR_FINDINGS_H_
#define FACET_TESTS_CUDA_EMULATOR_FINDINGS_H_

// What the emulator finds wrong with a kernel. A launch stops at its first finding.

#include <cstdint>
#include <source_location>
#include <string>
#include <vector>

namespace facet::cuda_emulator {

enum class Fault {
  kBadLaunch,         // a shape that no device takes
  kUninitialized,     // a read of shared memory that the block has not written
  kRace,              // two threads, one shared byte, one of them writing, no barrier between
  kDivergentBarrier,  // a barrier that some threads do not reach, or reach elsewhere
  kAbsentLane,        // a shuffle, vote or mma without all 32 lanes
  kOutOfRange,        // an access beyond a shared array
  kMisaligned,        // a vector access to an address that is no multiple of its size
  kUnfinishedCopy,    // an access to bytes that a cp.async is still to write
};

using Place = std::source_location;  // in the kernel's source

struct Finding {
  Fault fault;
  std::string text;  // "race: block (0,0,0) thread 3 reads ... (reduce.cu:31)"
};

std::string Describe(const Place& place);  // "reduce.cu:31"

// Sentences of the stand-in header.
std::string OutOfArray(int64_t element, int64_t count);
std::string NotAligned(uint64_t address, uint32_t alignment);
std::string NoRoom(int64_t wanted, int64_t had);
std::string NoRoomForFixed(int64_t fixed, int64_t dynamic);

// Takes the findings of launches on this thread while it lives, the innermost first. Without one a
// finding ends the process, so that nobody can miss it.
class FindingCollector {
 public:
  FindingCollector();
  ~FindingCollector();
  FindingCollector(const FindingCollector&) = delete;
  FindingCollector& operator=(const FindingCollector&) = delete;

  const std::vector<Finding>& findings() const { return findings_; }

 private:
  friend void Report(Finding finding);
  FindingCollector* outer_;
  std::vector<Finding> findings_;
};

// Hands a finding to this thread's collector.
void Report(Finding finding);

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_FINDINGS_H_
