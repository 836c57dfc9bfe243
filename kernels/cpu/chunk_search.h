#ifndef FACET_KERNELS_CPU_CHUNK_SEARCH_H_
#define FACET_KERNELS_CPU_CHUNK_SEARCH_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

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
  size_t count() const { return count_; }
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

// What has been found in some chunks of a row of logits.
struct RowFindings {
  bool finite = true;  // no logit was NaN or +infinity
  TopCandidates best;
  TopCandidates raw_best;

  void Reset(const CandidateQuery& query);
};

// Writes what all threads together found; the reply's sums stay as they are unless a logit was not
// finite.
void Merge(std::span<RowFindings> found, const CandidateQuery& query, CandidateReply* reply);

// Consecutive logits of one row: those of the rows [begin, begin + size) of the head.
struct LogitChunk {
  const float* logits = nullptr;
  int64_t begin = 0;
  int64_t size = 0;
};

// Looks at logits, or bounds of them, chunk by chunk. Has the memory that one thread needs for it.
class ChunkSearch {
 public:
  // The most logits that are looked at together.
  static constexpr int kChunk = 1024;

  explicit ChunkSearch(const KernelTable& kernels) : kernels_(kernels) {}

  // Writes the logits after edits and temperature to processed(). False if one of them or of the
  // raw ones is NaN or +infinity. REQUIRES: at most kChunk.
  bool Process(const CandidateQuery& query, const LogitChunk& chunk);
  const float* processed() const { return processed_; }
  // The orders of processed(), which may lie there too; what cannot reach the threshold may be
  // -infinity. `first_id`: of the head's row 0.
  const float* Orders(const CandidateQuery& query, const LogitChunk& chunk, int32_t first_id,
                      float threshold);
  // Offers the candidates among processed() to `best`.
  void Select(const CandidateQuery& query, const LogitChunk& chunk, int32_t first_id,
              TopCandidates* best);
  // The indices of values that reach the threshold; valid until the next call.
  std::span<const int32_t> Reaching(const float* values, int64_t size, float threshold);

  // Adds what a row is asked about a chunk to what has been found in others.
  void Look(const CandidateQuery& query, const LogitChunk& chunk, int32_t first_id,
            RowFindings* found);

  enum Logits { kProcessed, kRaw };
  // The sum over a whole slice of any size.
  SliceSum Sum(const CandidateQuery& query, const LogitChunk& slice, Logits which);

 private:
  void SelectRaw(const LogitChunk& chunk, int32_t first_id, TopCandidates* best);

  const KernelTable& kernels_;
  alignas(64) float processed_[kChunk];
  alignas(64) float order_[kChunk];
  int32_t indices_[kChunk];
};

// Calls visit(chunk) for the chunks that `logits` is cut into.
template <typename Visit>
void ForEachChunk(const LogitChunk& logits, const Visit& visit) {
  for (int64_t at = 0; at < logits.size; at += ChunkSearch::kChunk) {
    visit(LogitChunk{logits.logits + at, logits.begin + at,
                     std::min<int64_t>(ChunkSearch::kChunk, logits.size - at)});
  }
}

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CHUNK_SEARCH_H_
