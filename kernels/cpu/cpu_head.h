#ifndef FACET_KERNELS_CPU_CPU_HEAD_H_
#define FACET_KERNELS_CPU_CPU_HEAD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/cpu_product.h"
#include "kernels/cpu/cpu_vocabulary.h"
#include "kernels/cpu/fused_search.h"
#include "kernels/cpu/head_activations.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/screening_policy.h"

namespace facet {

// Device::SearchHead. One thread calls it.
//
// Where the head is split, a few rows ask and none wants sums, the first pass reads the high bits
// of every row and, where the activations are large, the low ones too: that gives each logit an
// upper bound (proof: kernels/README.md, "Screening"). Everything between a logit and the order of
// candidates is monotonic, so a row whose bound would not be among the best is not. Of the others
// more low bits are read, which lowers the bounds, and those that still reach the best known are
// completed, with the same bits as the whole product. What is not screened, or in vain, is the
// whole product's (fused_search.h).
class CpuHead {
 public:
  // Borrows everything.
  CpuHead(const KernelTable& kernels, ThreadPool* pool, CpuProduct* product,
          CpuVocabulary* vocabulary)
      : kernels_(kernels), pool_(*pool), vocabulary_(*vocabulary), fused_(kernels, pool, product) {}

  void Search(const HeadSearch& search, std::span<CandidateReply> replies);
  const HeadReads& reads() const { return reads_; }

 private:
  // One row of activations that is screened.
  struct Question {
    const CandidateQuery* query = nullptr;
    // By finite bounds, with a best row to compare with, that not too many others may surpass.
    bool bounded = false;
    CpuVocabulary::Scan scan;
    TopCandidates best;
    std::vector<CpuVocabulary::Reached> reached;  // rows of the head that may be among the best
    bool has_reached = false;
    // In half panels.
    int64_t refined = 0;
    int64_t completed = 0;
  };

  bool CanScreen() const;
  // The first pass. False: it would not pay, or cannot bound these activations.
  bool Begin();
  void Reserve();
  // Agrees with the other ranks on what the best candidates reach at least.
  void Agree();
  void FinishScreening(std::span<CandidateReply> replies);
  // Granules to read, or -1 where a row's kind had better not be screened.
  int PlanGranules();
  void FirstPass();
  // Prefetches panels before `fetch_end`.
  void RunPanel(int64_t panel, int64_t fetch_end) const;
  // Finds rows to compare with.
  void Seed(int row);
  // False if too many rows of the head would have to be completed.
  bool Finish(int row, CandidateReply* reply);
  void Reach(int row);
  // Of many rows that reach the threshold, the most promising raise it.
  void CompleteFirst(int row, size_t count);
  // Lowers the bounds of the rows reached and drops those that no longer reach the threshold.
  void Refine(int row);
  void RefineHalf(int row, std::span<const RefinedPart> parts, int64_t index);
  // Offers the exact candidates of `head_rows`, which ascend, to the row's best.
  void Complete(int row, std::span<const int32_t> head_rows);
  void CompleteHalf(int row, int64_t index);
  Candidate Judge(const CandidateQuery& query, int32_t head_row, float raw) const;
  // Into wanted_ and, ascending, halves_.
  void WantReached(int row);
  void SetHalves(std::span<const int32_t> head_rows);
  void Record(int row, bool found);
  // Bytes of the head that the first pass reads, and that this question then reads, over those of
  // the whole head.
  double FirstShare() const;
  double SecondShare(const Question& asked) const;

  int rows() const { return static_cast<int>(search_->queries.size()); }
  int64_t blocks() const { return head_->columns() / kBlockColumns; }
  int granules() const { return static_cast<int>(blocks()) * layout_.granules; }
  double HalvesShare(size_t halves) const {
    return static_cast<double>(halves) / (2.0 * static_cast<double>(head_->panels()));
  }
  // The bounds of a row's logits.
  float* bounds(int row) const { return search_->scratch.data + row * head_->rows(); }
  Question& question(int row) { return questions_[static_cast<size_t>(row)]; }

  const KernelTable& kernels_;
  ThreadPool& pool_;
  CpuVocabulary& vocabulary_;
  FusedSearch fused_;
  ScreeningPolicy policy_;
  HeadReads reads_;

  // The call in progress.
  std::vector<int> open_;  // rows without a reply yet
  const HeadSearch* search_ = nullptr;
  const PackedMatrix* head_ = nullptr;
  SplitLayout layout_;
  const SplitKernels* split_ = nullptr;
  HeadActivations activations_;
  int planned_ = 0;         // granules of the first pass
  size_t reached_max_ = 0;  // more rows of the head are not worth another look
  std::vector<Question> questions_;
  std::vector<float> floors_;
  std::vector<int32_t> wanted_;  // rows of the head to complete
  std::vector<int32_t> halves_;  // half panels to refine or complete
  std::vector<float> lanes_;     // [halves][16]: bounds or exact logits
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_HEAD_H_
