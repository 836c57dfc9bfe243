#include "kernels/cuda/nccl_link.h"

#include <optional>
#include <thread>
#include <utility>

#include "base/status.h"

namespace facet::cuda {
namespace {

// Calls of a communicator that does not block are both.
bool IsFine(NcclResult result) {
  return result == NcclResult::kSuccess || result == NcclResult::kInProgress;
}

}  // namespace

int RunTransfers(Stream stream, const Transfers& transfers) {
  return transfers.link->Put(transfers.list, stream).ok() ? 0 : kTransfersFailed;
}

NcclLink::NcclLink(Nccl* nccl, Communicator* host, const NcclOptions& options)
    : nccl_(nccl), host_(host), options_(options), timeout_(options.attach_timeout) {}

NcclLink::~NcclLink() { Abort(); }

// What NCCL says of aborting changes nothing: the communicator is given up.
void NcclLink::Abort() {
  if (comm_ != nullptr) nccl_->Abort(std::exchange(comm_, nullptr));
}

absl::Status NcclLink::Form(const NcclId& id) {
  FACET_RETURN_IF_ERROR(StatusOf(nccl_->InitRank(&comm_, host_->world(), id, host_->rank())));
  return Poll([](bool in_progress) { return !in_progress; });
}

absl::Status NcclLink::StatusOf(NcclResult result) {
  if (IsFine(result)) return absl::OkStatus();
  return Internal("NCCL: {}", nccl_->Describe(result, comm_));
}

absl::Status NcclLink::Put(std::span<const Transfer> transfers, Stream stream) {
  return error_ = PutTogether(transfers, stream);
}

absl::Status NcclLink::PutTogether(std::span<const Transfer> transfers, Stream stream) {
  if (transfers.empty()) return absl::OkStatus();
  NcclResult noted = nccl_->GroupStart();
  const auto note = [&noted](NcclResult result) {
    if (IsFine(noted)) noted = result;
  };
  for (const Transfer& transfer : transfers) note(Issue(transfer, stream));
  note(nccl_->GroupEnd());
  FACET_RETURN_IF_ERROR(StatusOf(noted));
  return Poll([](bool in_progress) { return !in_progress; });
}

NcclResult NcclLink::Issue(const Transfer& transfer, Stream stream) {
  const auto count = static_cast<size_t>(transfer.count);
  if (transfer.to == nullptr) {
    return nccl_->Send(transfer.from, count, transfer.peer, comm_, stream);
  }
  if (transfer.from == nullptr) {
    return nccl_->Receive(transfer.to, count, transfer.peer, comm_, stream);
  }
  return nccl_->AllGather(transfer.from, transfer.to, count, comm_, stream);
}

absl::Status NcclLink::Await(const std::function<bool()>& done) {
  return Poll([&done](bool) { return done(); });
}

template <typename Done>
absl::Status NcclLink::Poll(const Done& done) {
  const Clock::time_point begin = Clock::now();
  std::optional<Clock::time_point> gone;  // since when a peer is
  for (int look = 1;; ++look) {
    NcclResult error = NcclResult::kSuccess;
    FACET_RETURN_IF_ERROR(StatusOf(nccl_->GetAsyncError(comm_, &error)));
    FACET_RETURN_IF_ERROR(StatusOf(error));
    if (done(error == NcclResult::kInProgress)) return absl::OkStatus();
    const Clock::time_point now = Clock::now();
    if (now >= begin + timeout_) return DeadlineExceeded("it did not end in time on the device");
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
