#include "tests/cuda_emulator/stream.h"

#include <utility>

void CUstream_st::Put(facet::cuda_emulator::Work work) {
  if (capturing_) {
    captured_.push_back(std::move(work));
    return;
  }
  queue_.push_back(std::move(work));
  ++put_;
  if (random_() % 2 == 0) Finish();
}

std::vector<facet::cuda_emulator::Work> CUstream_st::EndCapture() {
  capturing_ = false;
  return std::exchange(captured_, {});
}

int CUstream_st::FinishUntil(uint64_t count) {
  while (done_ < count) {
    const facet::cuda_emulator::Work work = std::move(queue_.front());
    queue_.pop_front();
    ++done_;
    if (error_ == 0) error_ = work();
  }
  return error_;
}
