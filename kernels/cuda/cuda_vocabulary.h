#ifndef FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
#define FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device.h"

namespace facet::cuda {

// Device::FindCandidates over several rows of logits at once. A query for more candidates than
// kernels select (kTopMax) is answered on the host, by the reference's way.
class CudaVocabulary {
 public:
  explicit CudaVocabulary(const CudaContext& context) : context_(context) {}
  CudaVocabulary(const CudaVocabulary&) = delete;
  CudaVocabulary& operator=(const CudaVocabulary&) = delete;
  ~CudaVocabulary();

  absl::Status Init();
  // Makes room for rows of `size` logits. Called as matrices are loaded.
  absl::Status Prepare(int64_t size);

  // replies[i] is about row i of `logits`, [queries.size(), slices.starts.back()], on the device.
  void Find(Floats logits, const VocabularySlices& slices, std::span<const CandidateQuery> queries,
            std::span<CandidateReply> replies);

 private:
  // Where the work space holds what, for a group of rows.
  struct Layout {
    int64_t processed = 0;
    int64_t lists = 0;
    int64_t results = 0;
    int64_t bytes = 0;
  };
  // What comes back to the host: [rows, slices], [rows, best], [rows, raw_best].
  struct Results {
    int slices = 0;
    int best = 0;
    int raw_best = 0;
    int64_t raw_at(int64_t rows) const { return best_at(rows) + Part(rows, best); }
    int64_t best_at(int64_t rows) const {
      return rows * slices * static_cast<int64_t>(sizeof(SliceOnDevice));
    }
    int64_t bytes(int64_t rows) const { return raw_at(rows) + Part(rows, raw_best); }
    static int64_t Part(int64_t rows, int count) {
      return rows * count * static_cast<int64_t>(sizeof(CandidateOnDevice));
    }
  };
  // The call in progress.
  struct Call {
    Floats logits;
    const VocabularySlices* slices = nullptr;
    int64_t size = 0;
    std::span<const CandidateQuery> queries;
    std::span<CandidateReply> replies;
  };

  static Results ResultsOf(const Call& call, size_t begin, size_t end);
  static Layout LayoutOf(const Call& call, const Results& results, int64_t rows);
  // Of the queries [begin, end) and, behind them, of queries for up to `rows` rows.
  static int64_t UploadBytes(const Call& call, size_t begin, size_t end, int64_t rows);
  // The end of the longest group from `begin` on that all the memory has room for.
  size_t GroupEnd(const Call& call, size_t begin) const;
  // The rows that a group's kernels look at: those of its bucket, if all the memory has room.
  int64_t LaunchedRows(const Call& call, size_t begin, size_t end, const Results& results) const;
  void FindGroup(const Call& call, size_t begin, size_t end);
  void FindOnHost(const Call& call, size_t index);
  LogitRows Upload(const Call& call, size_t begin, size_t end, int64_t rows,
                   const int32_t** starts);
  void Fill(const Call& call, size_t begin, size_t end, int64_t rows, const Results& results) const;

  const CudaContext& context_;
  std::byte* host_ = nullptr;  // pinned, where results arrive
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
