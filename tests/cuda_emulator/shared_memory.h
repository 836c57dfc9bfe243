#ifndef FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
#define FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_

// A block's shared memory, and beside every byte who touched it last. Two accesses are in order if
// one thread made both, if a barrier of the block lies between, or a barrier of the warp when both
// are of that warp. Whatever is not in order, not both reads and not both atomic is a race, in
// whichever order the emulator happens to make them.

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tests/cuda_emulator/findings.h"

namespace facet::cuda_emulator {

inline constexpr int kWarpsMax = 32;
inline constexpr int kLanes = 32;
inline constexpr uint32_t kSharedBytesMax = 163 * 1024;  // what a block of an sm_80 can have
inline constexpr uint32_t kSharedBytesWithoutAsking = 48 * 1024;  // and without an attribute

// In the block's shared memory: dynamic bytes from 0 on, fixed arrays from kSharedBytesMax on.
struct Range {
  uint32_t begin = 0;
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
  // An atomic: puts `update` of what is there in its place. REQUIRES: the range is one aligned
  // word.
  std::optional<AccessFault> Update(Range range, int thread,
                                    const std::function<uint32_t(uint32_t)>& update,
                                    uint32_t* before);
  // A copy in the background begins and ends. While it is on the way nobody may touch the range.
  std::optional<AccessFault> BeginCopy(Range range, int thread);
  void EndCopy(Range range, int thread, const void* from);

 private:
  // Of one kind, since the last barriers: by many threads, as none is in the others' way. Epochs
  // never repeat, so a value of an earlier block means nothing.
  struct Accesses {
    uint32_t epoch = 0;
    uint32_t warp_epoch = 0;
    uint32_t lanes = 0;      // of `warp`, in its epoch
    uint8_t warp = 0;        // the first warp to come in the epoch
    bool by_others = false;  // a second warp did, too
  };
  struct Cell {                  // of one byte
    uint32_t defined_block = 0;  // the block that last wrote it
    uint32_t copying_block = 0;  // the block with a copy to it on the way
    uint32_t write_epoch = 0;
    uint32_t write_warp_epoch = 0;
    uint16_t writer = 0;  // thread
    Accesses reads;
  };

  bool WriteUnordered(const Cell& cell, int thread) const;
  bool Unordered(const Accesses& accesses, int thread) const;
  void Note(Accesses& accesses, int thread) const;
  std::optional<AccessFault> BesideAtomics(Range range, int thread, const char* does) const;
  std::optional<AccessFault> NoteWrite(Range range, int thread);

  std::vector<unsigned char> bytes_;
  std::vector<Cell> cells_;
  std::vector<Accesses> atomics_;  // of every word
  uint32_t atomic_epoch_ = 0;      // of the latest
  uint32_t block_ = 0;
  uint32_t epoch_ = 1;
  std::array<uint32_t, kWarpsMax> warp_epoch_{};
};

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_SHARED_MEMORY_H_
