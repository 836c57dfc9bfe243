#ifndef FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
#define FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_

// A block's shared memory, and beside every byte who touched it last. Two accesses are in order if
// one thread made both, if a barrier of the block lies between, or a barrier of the warp when both
// are of that warp. Whatever is not in order and not both reads is a race, in whichever order the
// emulator happens to make them.

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "tests/cuda_emulator/findings.h"

namespace facet::cuda_emulator {

inline constexpr int kWarpsMax = 32;
inline constexpr int kLanes = 32;
inline constexpr uint32_t kSharedBytesMax = 163 * 1024;  // what a block of an sm_80 can have

struct Range {
  uint32_t begin = 0;  // in the block's shared memory
  uint32_t bytes = 0;
};

// What is wrong with an access, without who made it.
struct AccessFault {
  Fault fault;
  std::string text;
};

class SharedBytes {
 public:
  SharedBytes();

  // All of it is undefined again.
  void BeginBlock();
  void BlockBarrier() { ++epoch_; }
  void WarpBarrier(int warp) { ++warp_epoch_[warp]; }

  // `thread` of the block reads or writes. REQUIRES: the range is inside.
  std::optional<AccessFault> Read(Range range, int thread, void* to);
  std::optional<AccessFault> Write(Range range, int thread, const void* from);
  // A copy in the background begins and ends. While it is on the way nobody may touch the range.
  std::optional<AccessFault> BeginCopy(Range range, int thread);
  void EndCopy(Range range, int thread, const void* from);

 private:
  // Of one byte. Epochs never repeat, so a value of an earlier block means nothing.
  struct Cell {
    uint32_t defined_block = 0;  // the block that last wrote it
    uint32_t copying_block = 0;  // the block with a copy to it on the way
    uint32_t write_epoch = 0;
    uint32_t write_warp_epoch = 0;
    uint32_t read_epoch = 0;
    uint32_t read_warp_epoch = 0;
    uint32_t read_lanes = 0;      // of read_warp, in its epoch
    uint16_t writer = 0;          // thread
    uint8_t read_warp = 0;        // the first warp to read it in the epoch
    bool read_by_others = false;  // a second warp did, too
  };

  bool WriteUnordered(const Cell& cell, int thread) const;
  bool ReadUnordered(const Cell& cell, int thread) const;
  std::optional<AccessFault> NoteWrite(Range range, int thread);
  void NoteRead(Cell& cell, int thread);

  std::vector<unsigned char> bytes_;
  std::vector<Cell> cells_;
  uint32_t block_ = 0;
  uint32_t epoch_ = 1;
  std::array<uint32_t, kWarpsMax> warp_epoch_{};
};

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
