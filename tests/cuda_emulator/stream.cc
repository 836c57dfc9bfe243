#include "tests/cuda_emulator/stream.h"

#include <utility>

void CUstream_st::Put(facet::cuda_emulator::Work work) {
  queue_.push_back(std::move(work));
  if (random_() % 2 == 0) Finish();
}

int CUstream_st::Finish() {
  while (!queue_.empty()) {
    const facet::cuda_emulator::Work work = std::move(queue_.front());
    queue_.pop_front();
    if (error_ == 0) error_ = work();
  }
  return error_;
}
