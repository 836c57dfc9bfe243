#include "kernels/cuda/nccl_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/slices.h"
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

absl::Status NcclCommunicator::Form(const absl::StatusOr<Nccl*>& nccl) {
  FACET_CHECK(world() > 1 && !link_);
  deadline_ = Clock::now() + options_.attach_timeout;
  host_->SetTimeout(options_.attach_timeout);
  const auto fail = [this](const absl::Status& status) {
    if (link_) link_->Abort();
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
  link_.emplace(*nccl, host_.get(), place_.stream, options_);
  absl::Status status = UseDevice(place_.device);
  if (status.ok()) status = link_->Form(id, deadline_);
  if (status.ok()) status = Connect();
  if (!status.ok()) return fail(status);
  return host_->Barrier();
}

// NCCL connects ranks when they first exchange something, which may take longer than a step may.
absl::Status NcclCommunicator::Connect() {
  float* const buffer = place_.buffer;
  FACET_RETURN_IF_ERROR(Fill(buffer, 0, 2 * world() * kFloatBytes, place_.stream));
  link_->Begin();
  link_->AllGather(buffer + rank(), 1, buffer);
  FACET_RETURN_IF_ERROR(link_->End(deadline_));
  link_->Begin();
  for (int peer = 0; peer < world(); ++peer) {
    if (peer == rank()) continue;
    link_->Send(buffer + rank(), 1, peer);
    link_->Receive(buffer + world() + peer, 1, peer);
  }
  FACET_RETURN_IF_ERROR(link_->End(deadline_));
  return link_->Finish(deadline_);
}

void NcclCommunicator::SetStep(uint64_t step) {
  step_ = step;
  host_->SetStep(step);
}

void NcclCommunicator::SetTimeout(std::chrono::milliseconds timeout) {
  timeout_ = std::min(timeout, kTimeoutMax);
  host_->SetTimeout(timeout);
}

Communicator::Times NcclCommunicator::TakeTimes() {
  Times times = host_->TakeTimes();
  times.work_s += std::exchange(work_s_, 0);
  return times;
}

absl::Status NcclCommunicator::AllGatherBytes(std::span<const std::byte> mine,
                                              std::vector<std::vector<std::byte>>* out) {
  return host_->AllGatherBytes(mine, out);
}

absl::Status NcclCommunicator::Broadcast(std::vector<std::byte>* message) {
  return host_->Broadcast(message);
}

template <typename Body>
absl::Status NcclCommunicator::Call(const CallSubject& subject, const Body& body) {
  deadline_ = Clock::now() + timeout_;
  FACET_RETURN_IF_ERROR(host_->Meet(subject));
  absl::Status status = UseDevice(place_.device);
  const Clock::time_point begin = Clock::now();
  if (status.ok()) status = body();
  if (status.ok() && link_) status = link_->Finish(deadline_);
  work_s_ += std::chrono::duration<double>(Clock::now() - begin).count();
  return status.ok() ? status : FailWith(subject, status);
}

absl::Status NcclCommunicator::FailWith(const CallSubject& subject, const absl::Status& status) {
  if (link_) link_->Abort();
  return host_->Fail(Annotate(
      status, fmt::format("rank {} was in {}", rank(), Describe(HeaderOf(subject, step_)))));
}

absl::Status NcclCommunicator::AllReduceSum(const SumTree& tree, const float* roots,
                                            int64_t elements, float* out) {
  const CallSubject subject = AllReduceOf(tree, elements, world());
  if (world() == 1) return Call(subject, [&] { return Copy(roots, elements, out); });
  const bool slices = AddsSlicesOnDevice(tree, elements, options_.slice_bytes_min);
  const int64_t piece = PieceOf(tree, elements, slices, place_.buffer_floats);
  const Reduction reduction = {tree, roots, elements, piece, out};
  const uint64_t detail = static_cast<uint64_t>(piece) * 2 + (slices ? 1 : 0);
  return Call(WithDetail(subject, detail),
              [&] { return slices ? ReduceInSlices(reduction) : ReduceEverywhere(reduction); });
}

// Every rank brings all its roots to all and finishes the tree for itself.
absl::Status NcclCommunicator::ReduceEverywhere(const Reduction& r) {
  const int own = r.tree.root_count(rank());
  for (int64_t begin = 0; begin < r.elements; begin += r.piece) {
    const int64_t length = std::min(r.piece, r.elements - begin);
    const float* mine = r.roots;
    if (length < r.elements) {  // its roots do not lie side by side
      float* const place = place_.buffer + RootsBefore(r.tree, rank()) * length;
      for (int root = 0; root < own; ++root) {
        FACET_RETURN_IF_ERROR(
            Copy(r.roots + root * r.elements + begin, length, place + root * length));
      }
      mine = place;
    }
    counts_.clear();
    for (int owner = 0; owner < world(); ++owner) {
      counts_.push_back(r.tree.root_count(owner) * length);
    }
    FACET_RETURN_IF_ERROR(Gather(mine, counts_, place_.buffer));
    FACET_RETURN_IF_ERROR(AddRoots(r.tree, length, r.out + begin));
  }
  return absl::OkStatus();
}

// Every rank gets the roots of its slice, finishes the tree for it, and brings its sums to all.
absl::Status NcclCommunicator::ReduceInSlices(const Reduction& r) {
  for (int64_t begin = 0; begin < r.elements; begin += r.piece) {
    const int64_t length = std::min(r.piece, r.elements - begin);
    FACET_RETURN_IF_ERROR(ExchangeSlices(r, begin, length));
    const Slice mine = SliceOf(rank(), world(), length);
    float* const sums = r.out + begin + mine.begin;
    FACET_RETURN_IF_ERROR(AddRoots(r.tree, mine.length, sums));
    counts_.clear();
    for (int owner = 0; owner < world(); ++owner) {
      counts_.push_back(SliceOf(owner, world(), length).length);
    }
    FACET_RETURN_IF_ERROR(Gather(sums, counts_, r.out + begin));
  }
  return absl::OkStatus();
}

// Sends every rank its slice of this rank's roots, and has the roots of this rank's slice brought
// to the buffer.
absl::Status NcclCommunicator::ExchangeSlices(const Reduction& r, int64_t begin, int64_t length) {
  const Slice mine = SliceOf(rank(), world(), length);
  const auto root_at = [&](int root, const Slice& slice) {
    return r.roots + root * r.elements + begin + slice.begin;
  };
  float* place = place_.buffer + RootsBefore(r.tree, rank()) * mine.length;
  for (int root = 0; root < r.tree.root_count(rank()); ++root, place += mine.length) {
    FACET_RETURN_IF_ERROR(Copy(root_at(root, mine), mine.length, place));
  }
  link_->Begin();
  place = place_.buffer;
  for (int peer = 0; peer < world(); ++peer) {
    const Slice theirs = SliceOf(peer, world(), length);
    for (int root = 0; root < r.tree.root_count(rank()) && peer != rank(); ++root) {
      link_->Send(root_at(root, theirs), theirs.length, peer);
    }
    for (int root = 0; root < r.tree.root_count(peer); ++root, place += mine.length) {
      if (peer != rank()) link_->Receive(place, mine.length, peer);
    }
  }
  return link_->End(deadline_);
}

absl::Status NcclCommunicator::AddRoots(const SumTree& tree, int64_t elements, float* out) {
  TreeSum sum;
  ScheduleTree(tree, &sum);
  sum.roots = place_.buffer;
  sum.stride = elements;
  sum.elements = elements;
  sum.out = out;
  return LaunchStatus(SumTreeRoots(place_.stream, sum));
}

absl::Status NcclCommunicator::Gather(const float* mine, std::span<const int64_t> counts,
                                      float* out) {
  const bool even = std::ranges::all_of(counts, [&](int64_t count) { return count == counts[0]; });
  if (!even) {
    int64_t begin = 0;
    for (int owner = 0; owner < rank(); ++owner) begin += counts[owner];
    FACET_RETURN_IF_ERROR(Copy(mine, counts[rank()], out + begin));
  }
  link_->Begin();
  if (even) {
    link_->AllGather(mine, counts[0], out);
  } else {
    for (int peer = 0; peer < world(); out += counts[peer++]) {
      if (peer == rank()) continue;
      link_->Send(mine, counts[rank()], peer);
      link_->Receive(out, counts[peer], peer);
    }
  }
  return link_->End(deadline_);
}

absl::Status NcclCommunicator::Copy(const float* from, int64_t count, float* to) {
  if (count == 0 || from == to) return absl::OkStatus();
  return CopyOnDevice(to, from, count * kFloatBytes, place_.stream);
}

absl::Status NcclCommunicator::AllGather(std::span<const float> mine,
                                         std::span<const int64_t> counts, float* out) {
  return Call(AllGatherOf(mine, counts, rank(), world()), [&] {
    if (world() == 1) return Copy(mine.data(), counts[0], out);
    return Gather(mine.data(), counts, out);
  });
}

}  // namespace facet::cuda
