#include "tests/cuda_emulator/stream.h"

#include <thread>
#include <utility>

#include "base/check.h"

void CUstream_st::Put(facet::cuda_emulator::Work work) {
  if (capturing_) {
    captured_.push_back(std::move(work));
    return;
  }
  PutWhen({}, std::move(work));
}

void CUstream_st::PutWhen(facet::cuda_emulator::Ready ready, facet::cuda_emulator::Work work) {
  FACET_CHECK(!capturing_, "work that needs others cannot be captured");
  queue_.push_back({std::move(ready), std::move(work)});
  ++put_;
  if (random_() % 2 == 0) TryUntil(put_);
}

std::vector<facet::cuda_emulator::Work> CUstream_st::EndCapture() {
  capturing_ = false;
  return std::exchange(captured_, {});
}

int CUstream_st::FinishUntil(uint64_t count) {
  while (!TryUntil(count)) std::this_thread::yield();
  return error_;
}

bool CUstream_st::TryUntil(uint64_t count) {
  while (done_ < count) {
    const facet::cuda_emulator::Ready& ready = queue_.front().ready;
    if (error_ == 0 && ready && !ready()) return false;
    DoFirst();
  }
  return true;
}

void CUstream_st::DoFirst() {
  const facet::cuda_emulator::Work work = std::move(queue_.front().work);
  queue_.pop_front();
  ++done_;
  if (error_ == 0) error_ = work();
}
