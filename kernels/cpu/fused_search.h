#ifndef FACET_KERNELS_CPU_FUSED_SEARCH_H_
#define FACET_KERNELS_CPU_FUSED_SEARCH_H_

#include <cstdint>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "kernels/cpu/chunk_search.h"
#include "kernels/cpu/cpu_product.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/device.h"
#include "kernels/host/aligned_buffer.h"

namespace facet {

// The whole product of an output layer with some rows, searched piece by piece while a piece's
// logits are in cache: no row of logits is ever written out. A piece is a chunk, or where some rows
// want sums, whose exponentials need the largest logit first, the chunks of a vocabulary slice: of
// these rows alone the slice is kept. Keeps its memory from call to call. One thread calls it.
class FusedSearch {
 public:
  // Rows that are searched together; of more, each such pass reads the head anew.
  static constexpr int kPassRows = 64;
  // And no further row once they want as many candidates together.
  static constexpr int kPassCandidates = 1 << 14;

  // Borrows everything.
  FusedSearch(const KernelTable& kernels, ThreadPool* pool, CpuProduct* product);

  // Makes room for searches that want up to `count` candidates of each of `rows` rows, without
  // sums.
  void Reserve(const HeadSearch& search, int rows, int count);
  // Answers the queries `rows`, which ascend, of the search. Returns how often it read the head.
  int Run(const HeadSearch& search, std::span<const int> rows, std::span<CandidateReply> replies);

 private:
  struct Piece {
    size_t slice;
    int64_t begin;
    int64_t end;
  };
  struct Scratch {
    explicit Scratch(const KernelTable& kernels) : search(kernels) {}
    ChunkSearch search;
    AlignedBuffer logits;  // [rows of a pass][kStride], of a chunk
    AlignedBuffer slice;   // [rows that want sums][slice_stride_]
  };

  // How many of `rows` are searched together.
  size_t PassSize(std::span<const int> rows) const;
  void Pass(std::span<const int> rows, std::span<CandidateReply> replies);
  void CutPieces();
  void SizeScratch();
  void Prepare(std::span<const int> rows, std::span<CandidateReply> replies);
  void SearchPiece(const Piece& piece, std::span<const int> rows, std::span<CandidateReply> replies,
                   int thread);
  // One chunk of a piece.
  void SearchChunk(const Piece& piece, int64_t begin, std::span<const int> rows, int thread);
  // The logits of the head's rows [begin, end), of all rows of the pass, to `out`. `goes_on`: those
  // from `end` on are this thread's next.
  void Multiply(int64_t begin, int64_t end, bool goes_on, float* out, int thread);
  // Of the rows that want sums, over the slice that this thread has kept of them.
  void Sum(const Piece& piece, std::span<const int> rows, std::span<CandidateReply> replies,
           int thread);

  const CandidateQuery& query(int row) const { return search_->queries[static_cast<size_t>(row)]; }
  // By thread, of the index-th row of the pass.
  std::span<RowFindings> findings(size_t index) {
    return std::span(findings_).subspan(index * scratch_.size(), scratch_.size());
  }

  const KernelTable& kernels_;
  ThreadPool& pool_;
  CpuProduct& product_;
  std::vector<Scratch> scratch_;  // by thread
  std::vector<RowFindings> findings_;

  // A chunk may begin and end inside a panel.
  static constexpr int64_t kStride = ChunkSearch::kChunk + 2 * kPanelColumns;

  // The pass in progress.
  const HeadSearch* search_ = nullptr;
  const PackedMatrix* head_ = nullptr;
  int pass_rows_ = 0;           // from the first row asked about to the last
  std::vector<size_t> summed_;  // which of those asked about want sums
  int64_t slice_stride_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace facet

#endif  // FACET_KERNELS_CPU_FUSED_SEARCH_H_
