#ifndef FACET_KERNELS_CPU_CPU_HEAD_H_
#define FACET_KERNELS_CPU_CPU_HEAD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/cpu_product.h"
#include "kernels/cpu/cpu_vocabulary.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/screening_policy.h"

namespace facet {

// Device::SearchHead. One thread calls it.
//
// Where the head is split, a few rows ask and none wants sums, the first pass reads the high bits
// of every row and, where the activations are large, the low ones too: that gives each logit an
// upper bound (proof: kernels/README.md, "Screening"). Everything between a logit and the order of
// candidates is monotonic, so a row whose bound would not be among the best is not; the others are
// completed, with the same bits as the whole product.
class CpuHead {
 public:
  // Borrows everything.
  CpuHead(const KernelTable& kernels, ThreadPool* pool, CpuProduct* product,
          CpuVocabulary* vocabulary)
      : kernels_(kernels), pool_(*pool), product_(*product), vocabulary_(*vocabulary) {}

  void Search(const HeadSearch& search, std::span<CandidateReply> replies);
  const HeadReads& reads() const { return reads_; }

 private:
  // Quantised activations of one row.
  struct Row {
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<float> scaled_sum;
    std::vector<int32_t> offset_sums[3];
    ActivationTile tile;  // of the above
  };
  // Rows that the first pass works on together, as in NarrowArgs.
  struct Tile {
    int first_row = 0;
    int rows = 0;
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<int32_t> start;
    std::vector<float> spread;
  };

  bool CanScreen() const;
  void Screen(std::span<CandidateReply> replies);
  void WholeProduct(int first_row, int rows);
  // Granules to read, or -1 where a row's kind had better not be screened.
  int PlanGranules();
  static void SetTile(const float* x, int64_t columns, Row* row);
  bool Quantize();  // false: the activations are too large to bound
  void ChooseGranules(int count);
  void FirstPass();
  void RunPanel(int64_t panel, int64_t end) const;
  void FillTile(Tile* tile) const;
  void FillPart(const Row& row, int64_t block, int part, int32_t* start, float* spread) const;
  // False if too many rows of the head would have to be completed.
  bool SearchRow(int row, CandidateReply* reply);
  void CompleteFirst(int row, size_t count);
  // Offers the exact candidates of `head_rows`, which ascend, to best_.
  void Complete(int row, std::span<const int32_t> head_rows);
  void CompleteHalf(int row, int64_t index);
  Candidate Judge(int32_t head_row, float raw) const;
  int64_t CountHalves(std::span<const int32_t> head_rows) const;

  int rows() const { return static_cast<int>(search_->queries.size()); }
  int64_t blocks() const { return head_->columns() / kBlockColumns; }
  int granules() const { return static_cast<int>(blocks()) * layout_.granules; }
  double HalvesShare(int64_t halves) const {
    return static_cast<double>(halves) / (2.0 * static_cast<double>(head_->panels()));
  }
  // The logits of a row, or their bounds.
  float* logits(int row) const { return search_->scratch.data + row * head_->rows(); }

  const KernelTable& kernels_;
  ThreadPool& pool_;
  CpuProduct& product_;
  CpuVocabulary& vocabulary_;
  ScreeningPolicy policy_;
  HeadReads reads_;

  // The call in progress.
  std::vector<int> open_;  // rows without a reply yet
  const HeadSearch* search_ = nullptr;
  const PackedMatrix* head_ = nullptr;
  SplitLayout layout_;
  const SplitKernels* split_ = nullptr;
  const CandidateQuery* query_ = nullptr;  // of the row in progress
  std::vector<Row> rows_;
  std::vector<Tile> tiles_;
  std::vector<double> energies_;  // [granules]
  std::vector<int32_t> ranking_;  // granules by energy
  std::vector<uint8_t> chosen_;   // as in NarrowArgs
  TopCandidates best_;
  std::vector<int32_t> wanted_;  // rows of the head to complete
  std::vector<CpuVocabulary::Reached> reached_;
  std::vector<int32_t> halves_;  // half panels to complete
  std::vector<float> exact_;     // [halves][16]
  int64_t halves_read_ = 0;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_CPU_HEAD_H_
