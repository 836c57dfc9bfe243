#include "kernels/cuda/cuda_vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/launch_queue.h"
#include "kernels/reference/reference_vocabulary.h"

namespace facet::cuda {
namespace {

// Bytes of results that come back at a time.
constexpr int64_t kHostBytes = int64_t{4} << 20;

int64_t Padded(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// How many of `count` wanted candidates a row of `size` logits has.
int Clamped(int count, int64_t size) {
  return static_cast<int>(std::clamp<int64_t>(count, 0, size));
}

// How many edits launches are for, of rows with up to `edits` of them.
int EditBucket(int edits) {
  constexpr unsigned kSmallest = 256;  // what a block of threads takes
  if (edits == 0) return 0;
  return static_cast<int>(std::max(kSmallest, std::bit_ceil(static_cast<unsigned>(edits))));
}

bool NeedsHost(const CandidateQuery& query, int64_t size) {
  return std::max(Clamped(query.count, size), Clamped(query.raw_count, size)) > kTopMax;
}

}  // namespace

CudaVocabulary::~CudaVocabulary() {
  if (host_ != nullptr) FreePinned(host_);
}

absl::Status CudaVocabulary::Init() {
  FACET_ASSIGN_OR_RETURN(host_, context_.memory->AllocatePinned("candidates", kHostBytes));
  return absl::OkStatus();
}

absl::Status CudaVocabulary::Prepare(int64_t size) {
  Call call;
  call.size = size;
  Results most;
  most.best = most.raw_best = Clamped(kTopMax, size);
  const int64_t bytes = LayoutOf(call, most, 1).bytes + kHostBytes;
  if (bytes > context_.workspace_bytes) {
    return ResourceExhausted("one row of {} logits needs {} bytes of a work space of {}", size,
                             bytes, context_.workspace_bytes);
  }
  const int64_t edits = size * static_cast<int64_t>(sizeof(EditOnDevice)) + kHostBytes / 4;
  if (edits > context_.uploads->size()) {
    return ResourceExhausted("edits of {} logits need {} bytes of a place of {}", size, edits,
                             context_.uploads->size());
  }
  return absl::OkStatus();
}

void CudaVocabulary::Find(const LogitQueries& asked, std::span<CandidateReply> replies) {
  FACET_CHECK(asked.queries.size() == replies.size());
  const Call call{asked, asked.slices->starts.back(), replies};
  for (size_t begin = 0; begin < replies.size();) {
    if (NeedsHost(call.queries[begin], call.size)) {
      FindOnHost(call, begin++);
      continue;
    }
    const Group group = GroupFrom(call, begin);
    Launch(call, group);
    context_.CheckDone(context_.wait->All(), "candidates");
    Fill(call, group);
    begin = group.end;
  }
}

void CudaVocabulary::FindBest(const LogitQueries& asked, Floats best) {
  const Call call{asked, asked.slices->starts.back(), {}, best};
  FACET_CHECK(std::ssize(call.queries) * kBestKeyFloats <= best.size, "{} keys in {} floats",
              call.queries.size(), best.size);
  for (size_t begin = 0; begin < call.queries.size();) {
    FACET_CHECK(call.queries[begin].count == 1, "a key of {} candidates",
                call.queries[begin].count);
    const Group group = GroupFrom(call, begin);
    // A further group would cut the sequence of launches where another rank's may have room.
    FACET_CHECK(!context_.wait->guarded() || group.end - group.begin == call.queries.size(),
                "{} of {} rows of {} logits have room: ranks would cut their exchanges differently",
                group.end - group.begin, call.queries.size(), call.size);
    const LogitRows rows = Process(call, group);
    auto* const keys =
        reinterpret_cast<uint64_t*>(best.data + static_cast<int64_t>(begin) * kBestKeyFloats);
    context_.launches->Put<&SelectBest>("best keys", rows,
                                        reinterpret_cast<const SliceOnDevice*>(ResultsAt(group)),
                                        group.results.slices, ListsAt(group), keys);
    queued_ = true;
    begin = group.end;
  }
}

CudaVocabulary::Results CudaVocabulary::ResultsOf(const Call& call, size_t begin, size_t end) {
  Results results;
  results.slices = static_cast<int>(call.slices->starts.size()) - 1;
  for (const CandidateQuery& query : call.queries.subspan(begin, end - begin)) {
    results.best = std::max(results.best, Clamped(query.count, call.size));
    results.raw_best = std::max(results.raw_best, Clamped(query.raw_count, call.size));
  }
  return results;
}

CudaVocabulary::Layout CudaVocabulary::LayoutOf(const Call& call, const Results& results,
                                                int64_t rows) {
  const int most = std::max(results.best, results.raw_best);
  Layout layout;
  layout.lists = Padded(rows * call.size * static_cast<int64_t>(sizeof(float)));
  layout.results = layout.lists + Padded(2 * rows * TopKeys(call.size, most) *
                                         static_cast<int64_t>(sizeof(uint64_t)));
  layout.bytes = layout.results + Padded(results.bytes(rows));
  return layout;
}

int64_t CudaVocabulary::UploadBytes(const Call& call, size_t begin, size_t end, int64_t rows) {
  const auto starts = static_cast<int64_t>(call.slices->starts.size() * sizeof(int32_t));
  const int64_t row_bytes = rows * static_cast<int64_t>(sizeof(QueryOnDevice));
  int64_t edits = 0;
  for (const CandidateQuery& query : call.queries.subspan(begin, end - begin)) {
    edits += static_cast<int64_t>(query.edits.size() * sizeof(EditOnDevice));
  }
  return UploadArea::Padded(starts) + UploadArea::Padded(row_bytes) + UploadArea::Padded(edits);
}

size_t CudaVocabulary::GroupEnd(const Call& call, size_t begin) const {
  size_t end = begin;
  while (end < call.queries.size() && !NeedsHost(call.queries[end], call.size)) {
    const Results results = ResultsOf(call, begin, end + 1);
    const auto rows = static_cast<int64_t>(end + 1 - begin);
    const bool fits = LayoutOf(call, results, rows).bytes <= context_.workspace_bytes &&
                      results.bytes(rows) <= kHostBytes &&
                      UploadBytes(call, begin, end + 1, rows) <= context_.uploads->size();
    if (!fits) break;
    ++end;
  }
  FACET_CHECK(end > begin, "no room for one row of {} logits", call.size);
  return end;
}

CudaVocabulary::Group CudaVocabulary::GroupFrom(const Call& call, size_t begin) const {
  const size_t end = GroupEnd(call, begin);
  const Results results = ResultsOf(call, begin, end);
  const int64_t rows = LaunchedRows(call, begin, end, results);
  return {begin, end, rows, results, LayoutOf(call, results, rows)};
}

int64_t CudaVocabulary::LaunchedRows(const Call& call, size_t begin, size_t end,
                                     const Results& results) const {
  const auto count = static_cast<int>(end - begin);
  const auto first = static_cast<int64_t>(begin);
  const RowsOfArray logits = {call.logits.size - first * call.size, call.size};
  const RowsOfArray best = {call.best.size - first * kBestKeyFloats, kBestKeyFloats};
  const int64_t rows = call.best ? context_.LaunchedRows(count, {logits, best})
                                 : context_.LaunchedRows(count, {logits});
  const bool fits = LayoutOf(call, results, rows).bytes <= context_.workspace_bytes &&
                    results.bytes(rows) <= kHostBytes &&
                    UploadBytes(call, begin, end, rows) <= context_.uploads->size();
  return fits ? rows : count;
}

LogitRows CudaVocabulary::Upload(const Call& call, size_t begin, size_t end, int64_t rows_launched,
                                 const int32_t** starts) {
  UploadArea& area = *context_.uploads;
  area.Restart();
  const std::vector<int64_t>& slice_starts = call.slices->starts;
  const auto from = area.Make(static_cast<int64_t>(slice_starts.size()), starts);
  std::transform(slice_starts.begin(), slice_starts.end(), from.begin(),
                 [](int64_t start) { return static_cast<int32_t>(start); });
  LogitRows rows;
  rows.logits = call.logits.data + static_cast<int64_t>(begin) * call.size;
  rows.rows = static_cast<int>(rows_launched);
  rows.size = call.size;
  rows.first_id = call.slices->first_id;
  const auto queries = area.Make(rows.rows, &rows.queries);
  std::fill(queries.begin(), queries.end(), QueryOnDevice());  // also behind the last
  int64_t edit_count = 0;
  for (size_t i = begin; i < end; ++i) {
    const CandidateQuery& query = call.queries[i];
    const auto first = static_cast<int32_t>(edit_count);
    edit_count += static_cast<int64_t>(query.edits.size());
    rows.edits_max = std::max(rows.edits_max, static_cast<int>(query.edits.size()));
    queries[i - begin] = {query.key,     query.inverse_temperature,        query.gumbel,
                          first,         static_cast<int32_t>(edit_count), query.sums,
                          query.raw_sums};
  }
  if (context_.launches->deferring()) rows.edits_max = EditBucket(rows.edits_max);
  const auto edits = area.Make(edit_count, &rows.edits);
  auto next = edits.begin();
  for (const CandidateQuery& query : call.queries.subspan(begin, end - begin)) {
    for (const LogitEdit& edit : query.edits) {
      FACET_CHECK(edit.row >= 0 && edit.row < call.size, "an edit of logit {}", edit.row);
      *next++ = {edit.row, edit.bias, edit.repetition, edit.subtract};
    }
  }
  area.Flush();
  return rows;
}

LogitRows CudaVocabulary::Process(const Call& call, const Group& group) {
  if (std::exchange(queued_, false)) context_.launches->Flush();
  const int32_t* starts = nullptr;
  LogitRows rows = Upload(call, group.begin, group.end, group.rows, &starts);
  rows.processed = reinterpret_cast<float*>(context_.workspace + group.layout.processed);
  LaunchQueue& launches = *context_.launches;
  launches.Put<&ProcessLogits>("processed logits", rows);
  launches.Put<&SumSlices>("slice sums", rows, starts, group.results.slices,
                           reinterpret_cast<SliceOnDevice*>(ResultsAt(group)));
  return rows;
}

void CudaVocabulary::Launch(const Call& call, const Group& group) {
  const LogitRows rows = Process(call, group);
  const Results& results = group.results;
  std::byte* const device = ResultsAt(group);
  LaunchQueue& launches = *context_.launches;
  if (results.best > 0) {
    auto* const to = reinterpret_cast<CandidateOnDevice*>(device + results.best_at(group.rows));
    launches.Put<&SelectTop>("candidates", rows, false, results.best, ListsAt(group), to);
  }
  if (results.raw_best > 0) {
    auto* const to = reinterpret_cast<CandidateOnDevice*>(device + results.raw_at(group.rows));
    launches.Put<&SelectTop>("candidates", rows, true, results.raw_best, ListsAt(group), to);
  }
  launches.Flush();
  CheckOk(CopyToHost(host_, device, results.bytes(group.rows), context_.stream), "candidates");
}

void CudaVocabulary::Fill(const Call& call, const Group& group) const {
  const size_t begin = group.begin, end = group.end;
  const int64_t rows = group.rows;
  const Results& results = group.results;
  const std::byte* const host = host_;
  const auto* slices = reinterpret_cast<const SliceOnDevice*>(host);
  const auto* best = reinterpret_cast<const CandidateOnDevice*>(host + results.best_at(rows));
  const auto* raw = reinterpret_cast<const CandidateOnDevice*>(host + results.raw_at(rows));
  const auto copy = [](const CandidateOnDevice* from, int count, std::vector<Candidate>* to) {
    for (int i = 0; i < count; ++i) {
      to->push_back({from[i].order, from[i].processed, from[i].raw, from[i].id});
    }
  };
  for (size_t i = begin; i < end; ++i, slices += results.slices) {
    const CandidateQuery& query = call.queries[i];
    CandidateReply& reply = call.replies[i];
    reply = CandidateReply();
    for (int s = 0; s < results.slices; ++s) reply.finite &= slices[s].finite != 0;
    const auto row = static_cast<int64_t>(i - begin);
    if (!reply.finite) continue;
    for (int s = 0; s < results.slices; ++s) {
      if (query.sums) reply.sums.push_back({slices[s].max, slices[s].sum});
      if (query.raw_sums) reply.raw_sums.push_back({slices[s].raw_max, slices[s].raw_sum});
    }
    copy(best + row * results.best, Clamped(query.count, call.size), &reply.best);
    copy(raw + row * results.raw_best, Clamped(query.raw_count, call.size), &reply.raw_best);
  }
}

void CudaVocabulary::FindOnHost(const Call& call, size_t index) {
  std::vector<float> logits(static_cast<size_t>(call.size));
  context_.launches->Flush();
  // First, because a copy to memory that is not pinned waits itself.
  context_.CheckDone(context_.wait->All(), "logits");
  CheckOk(CopyToHost(logits.data(), call.logits.data + static_cast<int64_t>(index) * call.size,
                     call.size * static_cast<int64_t>(sizeof(float)), context_.stream),
          "logits");
  CheckOk(Wait(context_.stream), "logits");
  FindCandidatesBySorting(logits.data(), *call.slices, call.queries[index], &call.replies[index]);
}

}  // namespace facet::cuda
