#ifndef FACET_TESTS_CUDA_EMULATOR_STREAM_H_
#define FACET_TESTS_CUDA_EMULATOR_STREAM_H_

// A stream keeps its work until somebody waits for it, or does it at once: a coin per operation
// decides, so that host code that forgets to wait is caught.

#include <cstdint>
#include <deque>
#include <functional>
#include <random>

namespace facet::cuda_emulator {

// Returns 0 or CUDA's error code.
using Work = std::function<int()>;

}  // namespace facet::cuda_emulator

struct CUstream_st {
 public:
  explicit CUstream_st(uint64_t seed) : random_(seed) {}

  // After an error of the stream it is dropped.
  void Put(facet::cuda_emulator::Work work);
  // Does all the work. The first error of the stream stays its error.
  int Finish();

 private:
  std::mt19937_64 random_;
  std::deque<facet::cuda_emulator::Work> queue_;
  int error_ = 0;
};

#endif  // FACET_TESTS_CUDA_EMULATOR_STREAM_H_
