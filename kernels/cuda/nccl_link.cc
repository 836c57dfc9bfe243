#include "kernels/cuda/nccl_link.h"

#include <optional>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/status.h"

namespace facet::cuda {
namespace {

// Calls of a communicator that does not block are both.
bool IsFine(NcclResult result) {
  return result == NcclResult::kSuccess || result == NcclResult::kInProgress;
}

}  // namespace

NcclLink::NcclLink(Nccl* nccl, Communicator* host, Stream stream, const NcclOptions& options)
    : nccl_(nccl), host_(host), stream_(stream), options_(options) {}

NcclLink::~NcclLink() {
  Abort();
  if (passed_ != nullptr) DestroyEvent(passed_);
}

// What NCCL says of aborting changes nothing: the communicator is given up.
void NcclLink::Abort() {
  if (comm_ != nullptr) nccl_->Abort(std::exchange(comm_, nullptr));
}

absl::Status NcclLink::Form(const NcclId& id, Clock::time_point deadline) {
  FACET_ASSIGN_OR_RETURN(passed_, MakeEvent());
  FACET_RETURN_IF_ERROR(StatusOf(nccl_->InitRank(&comm_, host_->world(), id, host_->rank())));
  return Await(deadline, [this] { return Settled(); });
}

absl::Status NcclLink::StatusOf(NcclResult result) {
  if (IsFine(result)) return absl::OkStatus();
  return Internal("NCCL: {}", nccl_->Describe(result, comm_));
}

absl::StatusOr<bool> NcclLink::Settled() {
  NcclResult error = NcclResult::kSuccess;
  FACET_RETURN_IF_ERROR(StatusOf(nccl_->GetAsyncError(comm_, &error)));
  FACET_RETURN_IF_ERROR(StatusOf(error));
  return error == NcclResult::kSuccess;
}

void NcclLink::Note(NcclResult result) {
  if (IsFine(noted_)) noted_ = result;
}

void NcclLink::Begin() { noted_ = nccl_->GroupStart(); }

void NcclLink::Send(const float* from, int64_t count, int peer) {
  if (count > 0) Note(nccl_->Send(from, static_cast<size_t>(count), peer, comm_, stream_));
}

void NcclLink::Receive(float* to, int64_t count, int peer) {
  if (count > 0) Note(nccl_->Receive(to, static_cast<size_t>(count), peer, comm_, stream_));
}

void NcclLink::AllGather(const float* from, int64_t count, float* to) {
  if (count > 0) Note(nccl_->AllGather(from, to, static_cast<size_t>(count), comm_, stream_));
}

absl::Status NcclLink::End(Clock::time_point deadline) {
  Note(nccl_->GroupEnd());
  FACET_RETURN_IF_ERROR(StatusOf(noted_));
  return Await(deadline, [this] { return Settled(); });
}

absl::Status NcclLink::Finish(Clock::time_point deadline) {
  FACET_RETURN_IF_ERROR(Record(passed_, stream_));
  return Await(deadline, [this]() -> absl::StatusOr<bool> {
    FACET_ASSIGN_OR_RETURN(const bool settled, Settled());
    if (!settled) return false;
    return Passed(passed_);
  });
}

template <typename Done>
absl::Status NcclLink::Await(Clock::time_point deadline, const Done& done) {
  const Clock::time_point begin = Clock::now();
  std::optional<Clock::time_point> gone;  // since when a peer is
  for (int look = 1;; ++look) {
    FACET_ASSIGN_OR_RETURN(const bool ended, done());
    if (ended) return absl::OkStatus();
    const Clock::time_point now = Clock::now();
    if (now >= deadline) return DeadlineExceeded("it did not end in time on the device");
    if (look % options_.looks_at_device == 0) {
      const absl::Status group = host_->Look();
      if (!group.ok() && !absl::IsUnavailable(group)) return group;
      if (!group.ok() && !gone) gone = now;
      if (!group.ok() && now >= *gone + options_.gone_grace) return group;
    }
    if (now < begin + options_.spin) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(options_.nap);
    }
  }
}

}  // namespace facet::cuda
