#include "kernels/cuda/cuda_vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/status.h"
#include "kernels/cuda/launch_queue.h"
#include "kernels/reference/reference_vocabulary.h"

namespace facet::cuda {
namespace {

// Bytes of results that come back at a time.
constexpr int64_t kHostBytes = int64_t{4} << 20;
// The same, of searches that are read later: they want few candidates.
constexpr int64_t kArrivalBytes = int64_t{256} << 10;

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
  for (Arrival& arrival : arrivals_) {
    if (arrival.event != nullptr) DestroyEvent(arrival.event);
  }
  if (asked_host_ != nullptr) FreePinned(asked_host_);
  if (host_ != nullptr) FreePinned(host_);
}

absl::Status CudaVocabulary::Init() {
  FACET_ASSIGN_OR_RETURN(host_, context_.memory->AllocatePinned("candidates", kHostBytes));
  FACET_ASSIGN_OR_RETURN(asked_host_,
                         context_.memory->AllocatePinned("candidates", kArrivals * kArrivalBytes));
  for (int i = 0; i < kArrivals; ++i) {
    arrivals_[i].host = asked_host_ + i * kArrivalBytes;
    FACET_ASSIGN_OR_RETURN(arrivals_[i].event, MakeEvent());
  }
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
  const Call call{asked, asked.slices->starts.back(), replies, kHostBytes};
  for (size_t begin = 0; begin < replies.size();) {
    if (NeedsHost(call.queries[begin], call.size)) {
      FindOnHost(call, begin++);
      continue;
    }
    const Group group = Launch(call, begin, GroupEnd(call, begin), host_);
    CheckOk(Wait(context_.stream), "candidates");
    Fill(call, group, host_);
    begin = group.end;
  }
}

void CudaVocabulary::Ask(const LogitQueries& queries) {
  Asked& asked = asked_.emplace_back();  // at once: its first groups may have to be settled
  asked.queries.assign(queries.queries.begin(), queries.queries.end());
  for (CandidateQuery& query : asked.queries) query.edits = {};
  asked.size = queries.slices->starts.back();
  asked.replies.resize(asked.queries.size());
  const Call call{queries, asked.size, asked.replies, kArrivalBytes};
  for (size_t begin = 0; begin < asked.replies.size();) {
    if (NeedsHost(call.queries[begin], call.size)) {
      FindOnHost(call, begin);
      asked.groups.push_back({{begin, begin + 1, 0, {}}, nullptr});
    } else {
      Arrival* const arrival = TakeArrival();
      asked.groups.push_back({Launch(call, begin, GroupEnd(call, begin), arrival->host), arrival});
      CheckOk(Record(arrival->event, context_.stream), "candidates");
    }
    begin = asked.groups.back().end;
  }
}

CudaVocabulary::Arrival* CudaVocabulary::TakeArrival() {
  Arrival* const arrival = &arrivals_[static_cast<size_t>(next_arrival_)];
  next_arrival_ = (next_arrival_ + 1) % kArrivals;
  for (Asked& asked : asked_) {
    for (AskedGroup& group : asked.groups) {
      if (group.arrival == arrival) CheckOk(Settle(&asked, &group), "candidates");
    }
  }
  return arrival;
}

absl::Status CudaVocabulary::Settle(Asked* asked, AskedGroup* group) {
  Arrival* const arrival = group->arrival;
  if (arrival == nullptr) return absl::OkStatus();
  FACET_RETURN_IF_ERROR(Wait(arrival->event));
  Call call;
  call.queries = asked->queries;
  call.size = asked->size;
  call.replies = asked->replies;
  Fill(call, *group, arrival->host);
  group->arrival = nullptr;
  return absl::OkStatus();
}

absl::Status CudaVocabulary::Read(std::span<CandidateReply> replies) {
  FACET_CHECK(!asked_.empty() && asked_.front().replies.size() == replies.size(), "{} replies",
              replies.size());
  Asked& asked = asked_.front();
  for (AskedGroup& group : asked.groups) FACET_RETURN_IF_ERROR(Settle(&asked, &group));
  std::move(asked.replies.begin(), asked.replies.end(), replies.begin());
  asked_.pop_front();
  return absl::OkStatus();
}

void CudaVocabulary::Drop() { asked_.clear(); }

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
                      results.bytes(rows) <= call.arrival_bytes &&
                      UploadBytes(call, begin, end + 1, rows) <= context_.uploads->size();
    if (!fits) break;
    ++end;
  }
  FACET_CHECK(end > begin, "no room for one row of {} logits", call.size);
  return end;
}

int64_t CudaVocabulary::LaunchedRows(const Call& call, size_t begin, size_t end,
                                     const Results& results) const {
  const auto count = static_cast<int>(end - begin);
  const int64_t logits = call.logits.size - static_cast<int64_t>(begin) * call.size;
  const int64_t rows = context_.LaunchedRows(count, {{logits, call.size}});
  const bool fits = LayoutOf(call, results, rows).bytes <= context_.workspace_bytes &&
                    results.bytes(rows) <= call.arrival_bytes &&
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
  rows.kept = context_.tokens;
  const auto queries = area.Make(rows.rows, &rows.queries);
  std::fill(queries.begin(), queries.end(), QueryOnDevice());  // also behind the last
  int64_t edit_count = 0;
  for (size_t i = begin; i < end; ++i) {
    const CandidateQuery& query = call.queries[i];
    const auto first = static_cast<int32_t>(edit_count);
    edit_count += static_cast<int64_t>(query.edits.size());
    rows.edits_max = std::max(rows.edits_max, static_cast<int>(query.edits.size()));
    queries[i - begin] = {query.key,
                          query.inverse_temperature,
                          query.gumbel,
                          first,
                          static_cast<int32_t>(edit_count),
                          query.sums,
                          query.raw_sums,
                          PlaceOf(call, i)};
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

int32_t CudaVocabulary::PlaceOf(const Call& call, size_t row) const {
  const int32_t place = call.keep.empty() ? -1 : call.keep[row];
  FACET_CHECK(place < context_.places, "place {} of {}", place, context_.places);
  FACET_CHECK(place < 0 || call.queries[row].count > 0, "no candidate to keep");
  return place;
}

CudaVocabulary::Group CudaVocabulary::Launch(const Call& call, size_t begin, size_t end,
                                             std::byte* host) {
  const Results results = ResultsOf(call, begin, end);
  const int64_t count = LaunchedRows(call, begin, end, results);
  const Layout layout = LayoutOf(call, results, count);
  const int32_t* starts = nullptr;
  LogitRows rows = Upload(call, begin, end, count, &starts);
  rows.processed = reinterpret_cast<float*>(context_.workspace + layout.processed);
  auto* const lists = reinterpret_cast<uint64_t*>(context_.workspace + layout.lists);
  std::byte* const device = context_.workspace + layout.results;
  LaunchQueue& launches = *context_.launches;
  launches.Put<&ProcessLogits>("processed logits", rows);
  launches.Put<&SumSlices>("slice sums", rows, starts, results.slices,
                           reinterpret_cast<SliceOnDevice*>(device));
  if (results.best > 0) {
    auto* const to = reinterpret_cast<CandidateOnDevice*>(device + results.best_at(count));
    launches.Put<&SelectTop>("candidates", rows, false, results.best, lists, to);
  }
  if (results.raw_best > 0) {
    auto* const to = reinterpret_cast<CandidateOnDevice*>(device + results.raw_at(count));
    launches.Put<&SelectTop>("candidates", rows, true, results.raw_best, lists, to);
  }
  launches.Flush();
  CheckOk(CopyToHost(host, device, results.bytes(count), context_.stream), "candidates");
  return {begin, end, count, results};
}

void CudaVocabulary::Fill(const Call& call, const Group& group, const std::byte* host) {
  const auto& [begin, end, rows, results] = group;
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
  FACET_CHECK(PlaceOf(call, index) < 0, "kept among more than {} candidates", kTopMax);
  std::vector<float> logits(static_cast<size_t>(call.size));
  context_.launches->Flush();
  CheckOk(CopyToHost(logits.data(), call.logits.data + static_cast<int64_t>(index) * call.size,
                     call.size * static_cast<int64_t>(sizeof(float)), context_.stream),
          "logits");
  CheckOk(Wait(context_.stream), "logits");
  FindCandidatesBySorting(logits.data(), *call.slices, call.queries[index], &call.replies[index]);
}

}  // namespace facet::cuda
