#include "kernels/cuda/nccl_communicator.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/slices.h"
#include "kernels/cuda/cuda_context.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tree_schedule.h"

namespace facet::cuda {
namespace {

// So that deadlines do not overflow: longer than anyone waits.
constexpr std::chrono::milliseconds kTimeoutMax = std::chrono::hours(24 * 365);
constexpr int64_t kFloatBytes = sizeof(float);

// Roots of the ranks before `rank`.
int RootsBefore(const SumTree& tree, int rank) {
  int roots = 0;
  for (int owner = 0; owner < rank; ++owner) roots += tree.root_count(owner);
  return roots;
}

bool AddsSlicesOnDevice(const SumTree& tree, int64_t elements, int64_t bytes_min) {
  return tree.world() > 2 && elements * RootCountMax(tree) * kFloatBytes >= bytes_min;
}

// How many elements go at a time, so that the buffer holds the roots of all ranks of what one rank
// adds. The same on all ranks.
int64_t PieceOf(const SumTree& tree, int64_t elements, bool slices, int64_t floats) {
  const int roots = RootsBefore(tree, tree.world());
  const int64_t most = floats / roots / kLineFloats * kLineFloats;
  FACET_CHECK(most > 0, "a buffer of {} floats for {} roots", floats, roots);
  return std::clamp<int64_t>(elements, 1, slices ? most * tree.world() : most);
}

}  // namespace

NcclCommunicator::NcclCommunicator(std::unique_ptr<Communicator> host, const NcclPlace& place,
                                   const NcclOptions& options)
    : host_(std::move(host)), place_(place), options_(options) {}

NcclCommunicator::~NcclCommunicator() {
  if (!link_) return;
  End();
  place_.launches->SetGuard(nullptr);
  place_.wait->SetGuard(nullptr);
  for (const StepOnStream& step : on_stream_) DestroyEvent(step.end);
  for (const Event event : events_) DestroyEvent(event);
}

absl::Status NcclCommunicator::Form(const absl::StatusOr<Nccl*>& nccl) {
  FACET_CHECK(world() > 1 && !link_);
  host_->SetTimeout(options_.attach_timeout);
  const auto fail = [this](const absl::Status& status) {
    if (link_) End();
    return host_->Fail(Annotate(status, fmt::format("rank {} forming the group", rank())));
  };
  if (!nccl.ok()) return fail(nccl.status());
  FACET_CHECK(place_.buffer_floats >= 2 * world(), "a buffer of {} floats", place_.buffer_floats);
  NcclId id;
  std::vector<std::byte> message;
  if (rank() == 0) {
    const NcclResult result = (*nccl)->GetUniqueId(&id);
    if (result != NcclResult::kSuccess) {
      return fail(Internal("NCCL: {}", (*nccl)->Describe(result, nullptr)));
    }
    message.assign(id.begin(), id.end());
  }
  FACET_RETURN_IF_ERROR(host_->Broadcast(&message));
  if (message.size() != id.size()) return fail(Internal("an id of {} bytes", message.size()));
  std::copy(message.begin(), message.end(), id.begin());
  link_.emplace(*nccl, host_.get(), options_);
  place_.launches->SetGuard(this);
  place_.wait->SetGuard(this);
  absl::Status status = UseDevice(place_.device);
  if (status.ok()) status = link_->Form(id);
  if (status.ok()) status = Connect();
  if (!status.ok()) return fail(status);
  link_->SetTimeout(timeout_);
  return host_->Barrier();
}

// NCCL connects ranks when they first exchange something, which may take longer than a step may.
absl::Status NcclCommunicator::Connect() {
  for (int i = 0; i < kStepsOnStream; ++i) {
    FACET_ASSIGN_OR_RETURN(const Event event, MakeEvent());
    events_.push_back(event);
  }
  float* const buffer = place_.buffer;
  const Stream stream = place_.wait->stream();
  FACET_RETURN_IF_ERROR(Fill(buffer, 0, 2 * world() * kFloatBytes, stream));
  const Transfer gather = {.from = buffer + rank(), .to = buffer, .count = 1};
  FACET_RETURN_IF_ERROR(link_->Put(std::span(&gather, 1), stream));
  std::vector<Transfer> pairs;
  for (int peer = 0; peer < world(); ++peer) {
    if (peer == rank()) continue;
    pairs.push_back({.from = buffer + rank(), .count = 1, .peer = peer});
    pairs.push_back({.to = buffer + world() + peer, .count = 1, .peer = peer});
  }
  FACET_RETURN_IF_ERROR(link_->Put(pairs, stream));
  FACET_RETURN_IF_ERROR(Record(events_.back(), stream));
  return AwaitEvent(events_.back());
}

absl::Status NcclCommunicator::AwaitEvent(Event event) {
  absl::Status device;
  FACET_RETURN_IF_ERROR(link_->Await([&] {
    const absl::StatusOr<bool> passed = Passed(event);
    device = passed.status();
    return !passed.ok() || *passed;
  }));
  return device;
}

// --- Between the calls and the stream.

template <typename Body>
absl::Status NcclCommunicator::Call(const CallSubject& subject, const Body& body) {
  FACET_RETURN_IF_ERROR(failure_);
  FACET_RETURN_IF_ERROR(UseDevice(place_.device));
  if (link_) {
    calls_.Add(subject);
  } else {
    FACET_RETURN_IF_ERROR(host_->Meet(subject));
  }
  met_s_ = 0;
  const Clock::time_point begin = Clock::now();
  body();
  work_s_ += std::chrono::duration<double>(Clock::now() - begin).count() - met_s_;
  return failure_;
}

absl::Status NcclCommunicator::Launch() {
  if (!calls_.empty()) {
    FACET_RETURN_IF_ERROR(UseDevice(place_.device));
    place_.launches->Flush();
  }
  return failure_;
}

absl::Status NcclCommunicator::Enter() {
  if (!failure_.ok() || calls_.empty()) return failure_;
  const CallSubject subject = std::exchange(calls_, {}).subject();
  agreed_ = HeaderOf(subject, step_);
  const Clock::time_point begin = Clock::now();
  const absl::Status status = host_->Meet(subject);
  met_s_ += std::chrono::duration<double>(Clock::now() - begin).count();
  if (status.ok()) return status;
  End();
  return failure_ = status;
}

void NcclCommunicator::Entered(bool whole) {
  if (!whole) return GiveUp(link_->error(), Describe(agreed_)).IgnoreError();
  DropPassed();
  if (on_stream_.empty() || on_stream_.back().header.step != agreed_.step) {
    if (events_.empty()) {
      const absl::Status status = AwaitEvent(on_stream_.front().end);
      if (!status.ok()) return GiveUp(status, Describe(on_stream_.front().header)).IgnoreError();
      DropPassed();
    }
    on_stream_.push_back({agreed_, events_.back()});
    events_.pop_back();
  }
  on_stream_.back().header = agreed_;
  CheckOk(Record(on_stream_.back().end, place_.wait->stream()), "an exchange");
}

void NcclCommunicator::DropPassed() {
  while (!on_stream_.empty()) {
    const absl::StatusOr<bool> passed = Passed(on_stream_.front().end);
    if (!passed.ok() || !*passed) return;
    events_.push_back(on_stream_.front().end);
    on_stream_.pop_front();
  }
}

absl::Status NcclCommunicator::Await(const std::function<bool()>& done) {
  FACET_RETURN_IF_ERROR(failure_);
  const absl::Status status = link_->Await(done);
  if (status.ok()) return status;
  DropPassed();
  return GiveUp(status, on_stream_.empty() ? fmt::format("step {}", step_)
                                           : Describe(on_stream_.front().header));
}

absl::Status NcclCommunicator::GiveUp(const absl::Status& status, const std::string& where) {
  End();
  return failure_ = host_->Fail(Annotate(status, fmt::format("rank {} was in {}", rank(), where)));
}

// Graphs first: NCCL's abort waits for them.
void NcclCommunicator::End() {
  place_.launches->Forget(&*link_);
  link_->Abort();
}

// --- What is in host memory.

void NcclCommunicator::SetStep(uint64_t step) {
  Launch().IgnoreError();  // as part of its own step; the next call says what is wrong
  step_ = step;
  host_->SetStep(step);
}

void NcclCommunicator::SetTimeout(std::chrono::milliseconds timeout) {
  timeout_ = std::min(timeout, kTimeoutMax);
  host_->SetTimeout(timeout);
  if (link_) link_->SetTimeout(timeout_);
}

Communicator::Times NcclCommunicator::TakeTimes() {
  Times times = host_->TakeTimes();
  times.work_s += std::exchange(work_s_, 0);
  return times;
}

absl::Status NcclCommunicator::AllGatherBytes(std::span<const std::byte> mine,
                                              std::vector<std::vector<std::byte>>* out) {
  FACET_RETURN_IF_ERROR(Launch());
  return host_->AllGatherBytes(mine, out);
}

absl::Status NcclCommunicator::Broadcast(std::vector<std::byte>* message) {
  FACET_RETURN_IF_ERROR(Launch());
  return host_->Broadcast(message);
}

absl::Status NcclCommunicator::Meet(const CallSubject& subject) {
  FACET_RETURN_IF_ERROR(Launch());
  return host_->Meet(subject);
}

absl::Status NcclCommunicator::Look() {
  FACET_RETURN_IF_ERROR(failure_);
  return host_->Look();
}

absl::Status NcclCommunicator::Finish() {
  FACET_RETURN_IF_ERROR(failure_);
  FACET_RETURN_IF_ERROR(UseDevice(place_.device));
  place_.launches->Flush();
  FACET_RETURN_IF_ERROR(failure_);
  return place_.wait->All();
}

// --- The operations.

absl::Status NcclCommunicator::AllReduceSum(const SumTree& tree, const float* roots,
                                            int64_t elements, float* out) {
  const CallSubject subject = AllReduceOf(tree, elements, world());
  if (world() == 1) return Call(subject, [&] { Copy(roots, elements, out); });
  const bool slices = AddsSlicesOnDevice(tree, elements, options_.slice_bytes_min);
  const int64_t piece = PieceOf(tree, elements, slices, place_.buffer_floats);
  const Reduction reduction = {tree, roots, elements, piece, out};
  const uint64_t detail = static_cast<uint64_t>(piece) * 2 + (slices ? 1 : 0);
  return Call(WithDetail(subject, detail),
              [&] { slices ? ReduceInSlices(reduction) : ReduceEverywhere(reduction); });
}

// Every rank brings all its roots to all and finishes the tree for itself.
void NcclCommunicator::ReduceEverywhere(const Reduction& r) {
  const int own = r.tree.root_count(rank());
  int64_t begin = 0;
  do {  // once of nothing, too, in which ranks must agree
    const int64_t length = std::min(r.piece, r.elements - begin);
    const float* mine = r.roots;
    if (length < r.elements) {  // its roots do not lie side by side
      float* const place = place_.buffer + RootsBefore(r.tree, rank()) * length;
      for (int root = 0; root < own; ++root) {
        Copy(r.roots + root * r.elements + begin, length, place + root * length);
      }
      mine = place;
    }
    counts_.clear();
    for (int owner = 0; owner < world(); ++owner) {
      counts_.push_back(r.tree.root_count(owner) * length);
    }
    Gather(mine, counts_, place_.buffer);
    AddRoots(r.tree, length, r.out + begin);
    begin += r.piece;
  } while (begin < r.elements);
}

// Every rank gets the roots of its slice, finishes the tree for it, and brings its sums to all.
void NcclCommunicator::ReduceInSlices(const Reduction& r) {
  for (int64_t begin = 0; begin < r.elements; begin += r.piece) {
    const int64_t length = std::min(r.piece, r.elements - begin);
    ExchangeSlices(r, begin, length);
    const Slice mine = SliceOf(rank(), world(), length);
    float* const sums = r.out + begin + mine.begin;
    AddRoots(r.tree, mine.length, sums);
    counts_.clear();
    for (int owner = 0; owner < world(); ++owner) {
      counts_.push_back(SliceOf(owner, world(), length).length);
    }
    Gather(sums, counts_, r.out + begin);
  }
}

// Sends every rank its slice of this rank's roots, and has the roots of this rank's slice brought
// to the buffer.
void NcclCommunicator::ExchangeSlices(const Reduction& r, int64_t begin, int64_t length) {
  const Slice mine = SliceOf(rank(), world(), length);
  const auto root_at = [&](int root, const Slice& slice) {
    return r.roots + root * r.elements + begin + slice.begin;
  };
  float* place = place_.buffer + RootsBefore(r.tree, rank()) * mine.length;
  for (int root = 0; root < r.tree.root_count(rank()); ++root, place += mine.length) {
    Copy(root_at(root, mine), mine.length, place);
  }
  std::vector<Transfer> transfers;
  place = place_.buffer;
  for (int peer = 0; peer < world(); ++peer) {
    const Slice theirs = SliceOf(peer, world(), length);
    for (int root = 0; root < r.tree.root_count(rank()) && peer != rank(); ++root) {
      transfers.push_back({.from = root_at(root, theirs), .count = theirs.length, .peer = peer});
    }
    for (int root = 0; root < r.tree.root_count(peer); ++root, place += mine.length) {
      if (peer == rank()) continue;
      transfers.push_back({.to = place, .count = mine.length, .peer = peer});
    }
  }
  Exchange(std::move(transfers));
}

void NcclCommunicator::AddRoots(const SumTree& tree, int64_t elements, float* out) {
  TreeSum sum;
  ScheduleTree(tree, &sum);
  sum.roots = place_.buffer;
  sum.stride = elements;
  sum.elements = elements;
  sum.out = out;
  place_.launches->Put<&SumTreeRoots>("a sum of roots", sum);
}

void NcclCommunicator::Gather(const float* mine, std::span<const int64_t> counts, float* out) {
  const bool even = std::ranges::all_of(counts, [&](int64_t count) { return count == counts[0]; });
  if (even) return Exchange({{mine, out, counts[0], 0}});
  int64_t begin = 0;
  for (int owner = 0; owner < rank(); ++owner) begin += counts[owner];
  Copy(mine, counts[rank()], out + begin);
  std::vector<Transfer> transfers;
  for (int peer = 0; peer < world(); out += counts[peer++]) {
    if (peer == rank()) continue;
    transfers.push_back({.from = mine, .count = counts[rank()], .peer = peer});
    transfers.push_back({.to = out, .count = counts[peer], .peer = peer});
  }
  Exchange(std::move(transfers));
}

// Of nothing, too: ranks agree in what goes to the stream.
void NcclCommunicator::Exchange(std::vector<Transfer> transfers) {
  std::erase_if(transfers, [](const Transfer& transfer) { return transfer.count == 0; });
  place_.launches->Put<&RunTransfers>("an exchange", Transfers{&*link_, std::move(transfers)});
}

// The tree of one root is a copy.
void NcclCommunicator::Copy(const float* from, int64_t count, float* to) {
  if (count == 0 || from == to) return;
  TreeSum sum;
  sum.count = 1;
  sum.roots = from;
  sum.stride = sum.elements = count;
  sum.out = to;
  place_.launches->Put<&SumTreeRoots>("a copy", sum);
}

absl::Status NcclCommunicator::AllGather(std::span<const float> mine,
                                         std::span<const int64_t> counts, float* out) {
  return Call(AllGatherOf(mine, counts, rank(), world()), [&] {
    world() == 1 ? Copy(mine.data(), counts[0], out) : Gather(mine.data(), counts, out);
  });
}

}  // namespace facet::cuda
