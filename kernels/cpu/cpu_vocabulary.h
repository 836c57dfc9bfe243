#ifndef FACET_KERNELS_CPU_CPU_VOCABULARY_H_
#define FACET_KERNELS_CPU_CPU_VOCABULARY_H_

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/device.h"

namespace facet {

// Keeps the `count` best of the candidates offered. Exact whatever the order of the offers.
class TopCandidates {
 public:
  void Reset(int count);
  // Nobody below this can be among the best.
  float threshold() const { return threshold_; }
  bool wanted() const { return count_ > 0; }
  void Offer(const Candidate& candidate);
  // The best, unordered; at most `count` and possibly some that were superseded.
  const std::vector<Candidate>& kept() const { return kept_; }
  // Sorts `all` and drops what is not among the best `count`.
  static void Finish(int count, std::vector<Candidate>* all);

 private:
  void Prune();

  size_t count_ = 0;
  float threshold_ = 0;
  std::vector<Candidate> kept_;
};

// Device::FindCandidates, spread over a pool's threads by vocabulary slices. One thread calls it.
class CpuVocabulary {
 public:
  CpuVocabulary(const KernelTable& kernels, ThreadPool* pool);

  void Find(const float* logits, const VocabularySlices& slices, const CandidateQuery& query,
            CandidateReply* reply);

 private:
  static constexpr int kChunk = 1024;
  struct Scratch {
    alignas(64) float processed[kChunk];
    alignas(64) float order[kChunk];
    int32_t indices[kChunk];
    TopCandidates best;
    TopCandidates raw_best;
    bool finite = true;
  };

  void ScanSlice(int64_t begin, int64_t end, Scratch* scratch, SliceSum* sum, SliceSum* raw_sum);
  void ScanChunk(int64_t begin, int size, Scratch* scratch);
  // Where the noise should be looked at first: the chunk with the largest processed logit.
  int64_t BestChunk(int64_t begin, int64_t end, Scratch* scratch);
  // The processed logits of [begin, begin + size) into scratch->processed.
  void Process(int64_t begin, int size, Scratch* scratch);
  void OfferChunk(const float* order, int64_t begin, int size, Scratch* scratch,
                  TopCandidates* to);
  SliceSum SumSlice(int64_t begin, int64_t end, float max, bool raw, Scratch* scratch);

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // by thread
  // The call in progress.
  const float* logits_ = nullptr;
  const VocabularySlices* slices_ = nullptr;
  const CandidateQuery* query_ = nullptr;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_VOCABULARY_H_
