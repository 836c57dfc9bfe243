#ifndef FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
#define FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/kernels.h"
#include "kernels/device.h"

namespace facet::cuda {

// Rows of logits, [queries.size(), slices->starts.back()], on the device, and what is asked of
// them.
struct LogitQueries {
  Floats logits;
  const VocabularySlices* slices = nullptr;
  std::span<const CandidateQuery> queries;
};

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

  // replies[i] is about row i. REQUIRES: as many replies as queries.
  void Find(const LogitQueries& asked, std::span<CandidateReply> replies);
  // best[i] = the BestKey of row i. Waits for nothing, and leaves its last kernels in the queue,
  // for a sequence with those of KeepBest(). REQUIRES: queries as AskHead()'s; where other ranks
  // take part in the sequence, the memory has room for all of them at once.
  void FindBest(const LogitQueries& asked, Floats best);
  // What FindBest() left there is on the stream.
  void Flushed() { queued_ = false; }

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
  struct Call : LogitQueries {
    int64_t size = 0;
    std::span<CandidateReply> replies;
    Floats best = {};  // FindBest()'s
  };
  // Neighbouring rows that are looked at together.
  struct Group {
    size_t begin = 0, end = 0;
    int64_t rows = 0;  // launched
    Results results;
    Layout layout;
  };

  static Results ResultsOf(const Call& call, size_t begin, size_t end);
  static Layout LayoutOf(const Call& call, const Results& results, int64_t rows);
  // Of the queries [begin, end) and, behind them, of queries for up to `rows` rows.
  static int64_t UploadBytes(const Call& call, size_t begin, size_t end, int64_t rows);
  // The end of the longest group from `begin` on that all the memory has room for.
  size_t GroupEnd(const Call& call, size_t begin) const;
  // The rows that a group's kernels look at: those of its bucket, if all the memory has room.
  int64_t LaunchedRows(const Call& call, size_t begin, size_t end, const Results& results) const;
  // The longest group from `begin` on.
  Group GroupFrom(const Call& call, size_t begin) const;
  // Puts on the stream what comes before any selection: the rows' logits, processed, and what
  // SumSlices() says of them, at the front of the results.
  LogitRows Process(const Call& call, const Group& group);
  // Puts the group's kernels on the stream, and the copy of their results to the host.
  void Launch(const Call& call, const Group& group);
  void FindOnHost(const Call& call, size_t index);
  std::byte* ResultsAt(const Group& group) const {
    return context_.workspace + group.layout.results;
  }
  uint64_t* ListsAt(const Group& group) const {
    return reinterpret_cast<uint64_t*>(context_.workspace + group.layout.lists);
  }
  LogitRows Upload(const Call& call, size_t begin, size_t end, int64_t rows,
                   const int32_t** starts);
  // From results that have arrived.
  void Fill(const Call& call, const Group& group) const;

  const CudaContext& context_;
  std::byte* host_ = nullptr;  // pinned, where results arrive
  bool queued_ = false;  // kernels that wait in the queue will read what was uploaded for them
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
