#ifndef FACET_TESTS_CUDA_EMULATOR_READY_SET_H_
#define FACET_TESTS_CUDA_EMULATOR_READY_SET_H_

#include <array>
#include <bit>
#include <cstdint>

namespace facet::cuda_emulator {

// Which threads of a block could go on. Taking one is most of what the emulator does between two
// shuffles, hence words and not a list.
class ReadySet {
 public:
  static constexpr int kSize = 1024;

  bool empty() const { return count_ == 0; }
  void Clear() { *this = {}; }
  // REQUIRES: not there yet.
  void Add(int thread) {
    words_[thread / 64] |= uint64_t{1} << (thread % 64);
    ++count_;
  }
  // The first at or after `start`, from 0 on again after the last. REQUIRES: not empty.
  int TakeFrom(int start) {
    int word = start / 64;
    uint64_t bits = words_[word] & (~uint64_t{0} << (start % 64));
    while (bits == 0) {
      word = (word + 1) % kWords;
      bits = words_[word];
    }
    return Take(64 * word + std::countr_zero(bits));
  }
  // REQUIRES: not empty.
  int TakeLast() {
    int word = kWords - 1;
    while (words_[word] == 0) --word;
    return Take(64 * word + 63 - std::countl_zero(words_[word]));
  }

 private:
  static constexpr int kWords = kSize / 64;
  int Take(int thread) {
    words_[thread / 64] &= ~(uint64_t{1} << (thread % 64));
    --count_;
    return thread;
  }
  std::array<uint64_t, kWords> words_{};
  int count_ = 0;
};

}  // namespace facet::cuda_emulator

#endif  // FACET_TESTS_CUDA_EMULATOR_READY_SET_H_
