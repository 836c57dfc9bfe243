#ifndef FACET_TESTS_CUDA_EMULATOR_STREAM_H_
#define FACET_TESTS_CUDA_EMULATOR_STREAM_H_

// A stream keeps its work until somebody waits for it, or does it at once: a coin per operation
// decides, so that host code that forgets to wait is caught. One thread at a time uses a stream,
// and does its work.

#include <cstdint>
#include <deque>
#include <functional>
#include <random>
#include <utility>
#include <vector>

namespace facet::cuda_emulator {

// Returns 0 or CUDA's error code.
using Work = std::function<int()>;
// Whether work can be done without waiting for anybody; asked again and again.
using Ready = std::function<bool()>;

}  // namespace facet::cuda_emulator

struct CUstream_st {
 public:
  explicit CUstream_st(uint64_t seed) : random_(seed) {}

  void Put(facet::cuda_emulator::Work work);
  // Work that needs others, such as other devices. What is put after it waits for it. REQUIRES: no
  // capture.
  void PutWhen(facet::cuda_emulator::Ready ready, facet::cuda_emulator::Work work);
  // What is put from here to EndCapture() is kept, not done.
  void BeginCapture() { capturing_ = true; }
  std::vector<facet::cuda_emulator::Work> EndCapture();
  bool capturing() const { return capturing_; }
  // Does all the work. After the first error the rest is dropped, and it stays the stream's error.
  int Finish() { return FinishUntil(put_); }
  // The same of the first `count` pieces of work ever put.
  int FinishUntil(uint64_t count);
  // As far as nothing waits for others: whether so much is done.
  bool TryUntil(uint64_t count);
  uint64_t put() const { return put_; }
  int error() const { return error_; }

 private:
  struct Piece {
    facet::cuda_emulator::Ready ready;  // empty: always
    facet::cuda_emulator::Work work;
  };
  void DoFirst();

  std::mt19937_64 random_;
  std::deque<Piece> queue_;
  uint64_t put_ = 0;
  uint64_t done_ = 0;
  int error_ = 0;
  bool capturing_ = false;
  std::vector<facet::cuda_emulator::Work> captured_;
};

#endif  // FACET_TESTS_CUDA_EMULATOR_STREAM_H_
