#ifndef FACET_KERNELS_CPU_CPU_VOCABULARY_H_
#define FACET_KERNELS_CPU_CPU_VOCABULARY_H_

#include <cstdint>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/chunk_search.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/device.h"

namespace facet {

// Looks at whole rows of logits, or of their bounds, spread over a pool's threads by vocabulary
// slices. One thread calls it.
class CpuVocabulary {
 public:
  CpuVocabulary(const KernelTable& kernels, ThreadPool* pool);

  // Makes room for calls about as many candidates and rows that reach a threshold.
  void Reserve(int count, size_t reached);

  // Device::FindCandidates.
  void Find(const float* logits, const VocabularySlices& slices, const CandidateQuery& query,
            CandidateReply* reply);

  struct Slice {
    bool finite = true;
    float max = 0;           // after edits and temperature
    int64_t best_chunk = 0;  // where the maximum is
  };
  // What is known of one row of bounds. Borrows all but the slices' state.
  struct Scan {
    const float* bounds = nullptr;
    const VocabularySlices* slices = nullptr;
    const CandidateQuery* query = nullptr;
    std::vector<Slice> state;  // by slice
  };

  // For CpuHead, two passes over upper bounds of logits. Seed() finds every slice's maximum and
  // writes, ascending, some rows that are likely to be among the best `count` (at most as many); it
  // is false if a bound is NaN or +infinity, or would be after edits and temperature.
  bool Seed(const float* bounds, const VocabularySlices& slices, const CandidateQuery& query,
            int count, Scan* scan, std::vector<int32_t>* rows);
  struct Reached {
    float order = 0;
    int32_t row = 0;
  };
  // The rows whose bounds reach `threshold`, in no order. `scan`: as Seed() left it; bounds may
  // have become lower since. False, and only some of them, if they are more than `limit`.
  bool Reach(const Scan& scan, float threshold, size_t limit, std::vector<Reached>* reached);

 private:
  struct Scratch {
    explicit Scratch(const KernelTable& kernels) : search(kernels) {}
    ChunkSearch search;
    TopCandidates best;
    std::vector<Reached> reached;
  };

  static LogitChunk SliceOf(const float* logits, const VocabularySlices& slices, size_t slice) {
    const int64_t begin = slices.starts[slice];
    return {logits + begin, begin, slices.starts[slice + 1] - begin};
  }
  void ScanSlice(const Scan& scan, size_t index, ChunkSearch* search, Slice* slice) const;
  // What the best candidates of the most promising chunk reach; those are kept in the first
  // thread's list.
  float SeedThreshold(const Scan& scan, int count);
  // The best candidates by their bounds, into merged_.
  void SelectBest(const Scan& scan, int count);
  void ReachInSlice(const Scan& scan, size_t slice, float threshold, size_t limit,
                    Scratch* scratch) const;

  const KernelTable& kernels_;
  ThreadPool& pool_;
  std::vector<Scratch> scratch_;       // by thread
  std::vector<RowFindings> findings_;  // by thread
  std::vector<Candidate> merged_;      // the threads' best
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_VOCABULARY_H_
