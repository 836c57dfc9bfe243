#ifndef FACET_KERNELS_CPU_ROTATION_TABLE_H_
#define FACET_KERNELS_CPU_ROTATION_TABLE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {

// The cosines and sines of one rope at the positions of a step's rows. Those of the first positions
// of a sequence, which every sequence has, are worked out once and kept. One thread calls it.
class RotationTable {
 public:
  // Positions below are kept: with 128 pairs they are 4 MiB once all have been asked for.
  static constexpr int64_t kKeptPositions = 4096;

  // Makes the rows of `layout` ready, on the threads of the pool; does nothing until Forget() if
  // they are.
  void Prepare(std::span<const float> inverse_frequency, const StepLayout& layout,
               ThreadPool* pool);
  void Forget() { rows_.clear(); }

  int pairs() const { return pairs_; }
  const float* cosines(int64_t row) const { return rows_[static_cast<size_t>(row)]; }
  const float* sines(int64_t row) const { return cosines(row) + pairs_; }

 private:
  struct Missing {
    int64_t position;
    float* to;  // cosines, then sines
  };

  float* KeptAt(int64_t position);
  void FindRows(const StepLayout& layout);

  int pairs_ = 0;
  AlignedBuffer kept_;  // [kKeptPositions][2][pairs]; what is not known is not touched
  std::vector<uint8_t> known_;
  std::vector<float> later_;        // of this step's rows beyond, [row][2][pairs]
  std::vector<const float*> rows_;  // of this step
  std::vector<Missing> missing_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_ROTATION_TABLE_H_
