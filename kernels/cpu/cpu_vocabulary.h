#ifndef FACET_KERNELS_CPU_CPU_VOCABULARY_H_
#define FACET_KERNELS_CPU_CPU_VOCABULARY_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/device.h"

namespace facet {

// As new, but with the memory that it has.
void Clear(CandidateReply* reply);

// Keeps the `count` best of the candidates offered. Exact whatever the order of the offers.
class TopCandidates {
 public:
  // `floor`: nobody below it can be among the best.
  void Reset(int count, float floor);
  // Nobody below this can be among the best.
  float threshold() const { return threshold_; }
  // Enough others are known to reach `floor`.
  void Raise(float floor) { threshold_ = std::max(threshold_, floor); }
  void Offer(const Candidate& candidate);
  // Drops what is not among the best `count`, and raises the threshold if there are as many.
  void Prune();
  // The best, unordered; until pruned, also some that were superseded.
  const std::vector<Candidate>& kept() const { return kept_; }

 private:
  size_t count_ = 0;
  float threshold_ = 0;
  std::vector<Candidate> kept_;
};

// Device::FindCandidates, spread over a pool's threads by vocabulary slices. One thread calls it.
//
// The first pass finds every slice's maximum. The best candidates of the chunk of logits with the
// largest one give a threshold, and the second pass looks only at slices and logits (with the
// largest possible noise) that reach it.
class CpuVocabulary {
 public:
  CpuVocabulary(const KernelTable& kernels, ThreadPool* pool);

  // Makes room for calls about as many slices, candidates and rows that reach a threshold.
  void Reserve(size_t slices, int count, size_t reached);

  void Find(const float* logits, const VocabularySlices& slices, const CandidateQuery& query,
            CandidateReply* reply);

  struct Slice {
    bool finite = true;
    std::array<float, 2> max;           // by Logits
    std::array<int64_t, 2> best_chunk;  // where the maximum is
  };
  // What is known of one row of logits, or of bounds. Borrows all but the slices' state.
  struct Scan {
    const float* logits = nullptr;
    const VocabularySlices* slices = nullptr;
    const CandidateQuery* query = nullptr;
    std::vector<Slice> state;  // by slice
  };

  // The same two passes over upper bounds of logits, for CpuHead. Seed() writes, ascending, some
  // rows that are likely to be among the best `count` (at most as many), and is false if a bound
  // is NaN or +infinity, or would be after edits and temperature.
  bool Seed(const float* bounds, const VocabularySlices& slices, const CandidateQuery& query,
            int count, Scan* scan, std::vector<int32_t>* rows);
  struct Reached {
    float order = 0;
    int32_t row = 0;
  };
  static constexpr int kChunk = 1024;
  // The rows whose bounds reach `threshold`, in no order. `scan`: as Seed() left it; bounds may
  // have become lower since. False, and only some of them, if they are more than `limit`.
  bool Reach(Scan* scan, float threshold, size_t limit, std::vector<Reached>* reached);

 private:
  // Which logits are looked at: as the device gave them, or after edits and temperature.
  enum Logits { kProcessed, kRaw };

  struct Scratch {
    alignas(64) float processed[kChunk];
    alignas(64) float order[kChunk];
    int32_t indices[kChunk];
    std::array<TopCandidates, 2> best;  // by Logits
    std::vector<Reached> reached;
  };

  int64_t begin(size_t slice) const { return scan_->slices->starts[slice]; }
  int64_t end(size_t slice) const { return scan_->slices->starts[slice + 1]; }

  void ReachInSlice(size_t slice, float threshold, size_t limit, Scratch* scratch);
  // The orders of the processed logits of [begin, begin + size), which may lie in scratch->order;
  // what cannot reach the threshold may be -infinity.
  const float* Orders(int64_t begin, int size, float threshold, Scratch* scratch) const;
  void ScanSlice(size_t slice, Scratch* scratch);
  float SeedThreshold(Logits which, int count);
  void SelectFromSlice(size_t slice, Logits which, Scratch* scratch);
  void SelectFromChunk(int64_t begin, int size, Logits which, Scratch* scratch);
  SliceSum SumSlice(size_t slice, Logits which, Scratch* scratch);
  // Into merged_.
  void SelectBest(Logits which, int count);
  // The processed logits of [begin, begin + size) into scratch->processed. False if one of them or
  // of the raw ones is NaN or +infinity.
  bool Process(int64_t begin, int size, Scratch* scratch) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;   // by thread
  Scan find_;                      // Find()'s
  Scan* scan_ = nullptr;           // of the call in progress
  std::vector<Candidate> merged_;  // the threads' best
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_VOCABULARY_H_
