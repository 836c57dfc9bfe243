#ifndef FACET_TESTS_CUDA_EMULATOR_STREAM_H_
#define FACET_TESTS_CUDA_EMULATOR_STREAM_H_

// A stream keeps its work until somebody waits for it, or does it at once: a coin per operation
// decides, so that host code that forgets to wait is caught. One thread at a time uses a stream;
// but devices do not need their hosts, so the work may also be done by another's thread that waits
// for what this one has to send (TryAll()).

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <utility>
#include <vector>

namespace facet::cuda_emulator {

// Returns 0 or CUDA's error code.
using Work = std::function<int()>;
// Whether work can be done without waiting for anybody; asked again and again, on any thread.
using Ready = std::function<bool()>;

struct Piece {
  Ready ready;  // empty: always
  Work work;
  std::shared_ptr<const void> captured = nullptr;  // held as long as a graph has the piece
};

}  // namespace facet::cuda_emulator

struct CUstream_st {
 public:
  using Piece = facet::cuda_emulator::Piece;

  explicit CUstream_st(uint64_t seed) : random_(seed) {}

  // What is put after a piece waits for it.
  void Put(Piece piece);
  void Put(facet::cuda_emulator::Work work) { Put({{}, std::move(work)}); }
  // What is put from here to EndCapture() is kept, not done.
  void BeginCapture() { capturing_ = true; }
  std::vector<Piece> EndCapture();
  bool capturing() const { return capturing_; }
  // Does all the work. After the first error the rest is dropped, and it stays the stream's error.
  int Finish() { return FinishUntil(put()); }
  // The same of the first `count` pieces of work ever put.
  int FinishUntil(uint64_t count);
  // As far as nothing waits for others: whether so much is done.
  bool TryUntil(uint64_t count);
  // For who waits for something that this stream has to do. Any thread.
  void TryAll() { TryUntil(put()); }
  uint64_t put() const;
  int error() const;

 private:
  // Takes the first piece, to be done on this thread; false: there is none, it is not ready, or
  // another thread is at work.
  bool Take(uint64_t count, Piece* piece);
  void Done(int error);

  mutable std::mutex mutex_;
  std::mt19937_64 random_;
  std::deque<Piece> queue_;
  uint64_t put_ = 0;
  uint64_t done_ = 0;
  int error_ = 0;
  bool at_work_ = false;
  bool capturing_ = false;
  std::vector<Piece> captured_;
};

#endif  // FACET_TESTS_CUDA_EMULATOR_STREAM_H_
