#include "kernels/cpu/rotation_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "kernels/host/rotation.h"

namespace facet {
namespace {

// A cosine and a sine take tens of nanoseconds: a task of so many positions is worth a thread.
constexpr int64_t kTaskPositions = 8;

}  // namespace

void RotationTable::Prepare(std::span<const float> inverse_frequency, const StepLayout& layout,
                            ThreadPool* pool) {
  if (!rows_.empty()) return;
  pairs_ = static_cast<int>(inverse_frequency.size());
  FindRows(layout);
  const int64_t count = static_cast<int64_t>(missing_.size());
  pool->ParallelFor((count + kTaskPositions - 1) / kTaskPositions, [&](int64_t task, int) {
    const int64_t end = std::min(count, (task + 1) * kTaskPositions);
    for (int64_t i = task * kTaskPositions; i < end; ++i) {
      const auto [position, to] = missing_[static_cast<size_t>(i)];
      for (int pair = 0; pair < pairs_; ++pair) {
        const Rotation rotation =
            RotationAt(position, inverse_frequency[static_cast<size_t>(pair)]);
        to[pair] = rotation.cosine;
        to[pairs_ + pair] = rotation.sine;
      }
    }
  });
}

float* RotationTable::KeptAt(int64_t position) {
  return reinterpret_cast<float*>(kept_.data()) + position * 2 * pairs_;
}

// Where the rotations of every row are, and which of them have still to be worked out: each once,
// also if several sequences are at the same position.
void RotationTable::FindRows(const StepLayout& layout) {
  if (known_.empty()) {
    absl::StatusOr<AlignedBuffer> kept =
        AlignedBuffer::Make(static_cast<size_t>(kKeptPositions * 2 * pairs_) * sizeof(float));
    FACET_CHECK(kept.ok(), "{}", kept.status().ToString());
    kept_ = *std::move(kept);
    known_.resize(kKeptPositions);
  }
  later_.resize(std::max(later_.size(), static_cast<size_t>(int64_t{layout.rows} * 2 * pairs_)));
  missing_.clear();
  for (const SequenceRun& run : layout.runs) {
    for (int i = 0; i < run.rows; ++i) {
      const int64_t position = run.first_position + i;
      float* to = later_.data() + static_cast<int64_t>(rows_.size()) * 2 * pairs_;
      bool known = false;
      if (position < kKeptPositions) {
        to = KeptAt(position);
        known = std::exchange(known_[static_cast<size_t>(position)], 1) != 0;
      }
      rows_.push_back(to);
      if (!known) missing_.push_back({position, to});
    }
  }
}

}  // namespace facet
