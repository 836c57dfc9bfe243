#include "shard_worker/runtime/step_times.h"

#include <bit>

namespace facet {

void StepTimes::Subtract(const StepTimes& other) {
  steps -= other.steps;
  compute_s -= other.compute_s;
  collective_s -= other.collective_s;
  wait_s -= other.wait_s;
  head.rows -= other.head.rows;
  head.screened -= other.head.screened;
  head.completed -= other.head.completed;
  head.bytes -= other.head.bytes;
  profile.Subtract(other.profile);
}

void PublishedTimes::Store(const StepTimes& times) {
  const auto words = std::bit_cast<Words>(times);
  for (size_t i = 0; i < words.size(); ++i) words_[i].store(words[i], std::memory_order_relaxed);
}

StepTimes PublishedTimes::Load() const {
  Words words;
  for (size_t i = 0; i < words.size(); ++i) words[i] = words_[i].load(std::memory_order_relaxed);
  return std::bit_cast<StepTimes>(words);
}

}  // namespace facet
