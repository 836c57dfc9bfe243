#include "tests/cuda_emulator/stream.h"

#include <thread>
#include <utility>

#include "base/check.h"

using facet::cuda_emulator::Piece;

void CUstream_st::Put(Piece piece) {
  if (capturing_) {
    captured_.push_back(std::move(piece));
    return;
  }
  uint64_t count;
  bool at_once;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(piece));
    count = ++put_;
    at_once = random_() % 2 == 0;
  }
  if (at_once) TryUntil(count);
}

std::vector<Piece> CUstream_st::EndCapture() {
  capturing_ = false;
  return std::exchange(captured_, {});
}

uint64_t CUstream_st::put() const {
  const std::lock_guard lock(mutex_);
  return put_;
}

int CUstream_st::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

int CUstream_st::FinishUntil(uint64_t count) {
  while (!TryUntil(count)) std::this_thread::yield();
  return error();
}

bool CUstream_st::TryUntil(uint64_t count) {
  for (Piece piece; Take(count, &piece);) {
    const bool ready = !piece.ready || error() != 0 || piece.ready();
    if (!ready) {
      const std::lock_guard lock(mutex_);
      queue_.push_front(std::move(piece));
      at_work_ = false;
      break;
    }
    Done(error() == 0 ? piece.work() : 0);
  }
  const std::lock_guard lock(mutex_);
  return done_ >= count;
}

bool CUstream_st::Take(uint64_t count, Piece* piece) {
  const std::lock_guard lock(mutex_);
  if (at_work_ || done_ >= count) return false;
  FACET_CHECK(!queue_.empty(), "{} pieces of work of {}", done_, put_);
  *piece = std::move(queue_.front());
  queue_.pop_front();
  at_work_ = true;
  return true;
}

void CUstream_st::Done(int error) {
  const std::lock_guard lock(mutex_);
  ++done_;
  at_work_ = false;
  if (error_ == 0) error_ = error;
}
