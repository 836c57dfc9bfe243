#ifndef FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
#define FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_

#include <array>
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

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
  std::span<const int32_t> keep = {};  // as HeadSearch's
};

// Device::FindCandidates over several rows of logits at once, answered at once or later. A query
// for more candidates than kernels select (kTopMax) is answered on the host, by the reference's
// way.
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
  // Device::AskHead, ReadReplies and DropReplies, once there are logits. Results arrive in one of a
  // few places of the host's memory; who asks while all are taken waits for the oldest.
  void Ask(const LogitQueries& asked);
  absl::Status Read(std::span<CandidateReply> replies);
  void Drop();

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
    int64_t arrival_bytes = 0;  // that results of a group may take on the host
  };
  // Neighbouring rows that are looked at together.
  struct Group {
    size_t begin = 0, end = 0;
    int64_t rows = 0;  // launched
    Results results;
  };
  // Where results of a group that is read later arrive.
  struct Arrival {
    std::byte* host = nullptr;
    Event event = nullptr;  // they are there
  };
  struct AskedGroup : Group {
    Arrival* arrival = nullptr;  // null: the replies are there
  };
  // A search that was asked and not read.
  struct Asked {
    std::vector<CandidateQuery> queries;  // without their edits, which are on the device
    int64_t size = 0;
    std::vector<CandidateReply> replies;
    std::vector<AskedGroup> groups;
  };
  static constexpr int kArrivals = 4;

  static Results ResultsOf(const Call& call, size_t begin, size_t end);
  static Layout LayoutOf(const Call& call, const Results& results, int64_t rows);
  // Of the queries [begin, end) and, behind them, of queries for up to `rows` rows.
  static int64_t UploadBytes(const Call& call, size_t begin, size_t end, int64_t rows);
  // The end of the longest group from `begin` on that all the memory has room for.
  size_t GroupEnd(const Call& call, size_t begin) const;
  // The rows that a group's kernels look at: those of its bucket, if all the memory has room.
  int64_t LaunchedRows(const Call& call, size_t begin, size_t end, const Results& results) const;
  // Puts the group's kernels on the stream, and the copy of their results to `host`.
  Group Launch(const Call& call, size_t begin, size_t end, std::byte* host);
  // A free place; waits for the oldest group if there is none.
  Arrival* TakeArrival();
  absl::Status Settle(Asked* asked, AskedGroup* group);
  void FindOnHost(const Call& call, size_t index);
  // Where row `row` of the call keeps its best candidate, -1: nowhere.
  int32_t PlaceOf(const Call& call, size_t row) const;
  LogitRows Upload(const Call& call, size_t begin, size_t end, int64_t rows,
                   const int32_t** starts);
  // From results that have arrived.
  static void Fill(const Call& call, const Group& group, const std::byte* host);

  const CudaContext& context_;
  std::byte* host_ = nullptr;        // pinned, where results arrive that are read at once
  std::byte* asked_host_ = nullptr;  // pinned, the arrivals'
  std::array<Arrival, kArrivals> arrivals_;
  int next_arrival_ = 0;  // they are taken in turn
  std::deque<Asked> asked_;
};

}  // namespace facet::cuda

#endif  // FACET_KERNELS_CUDA_CUDA_VOCABULARY_H_
