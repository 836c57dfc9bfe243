#include "kernels/collectives/tcp_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/slices.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

iovec PartOf(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

int RootCount(const SumTree& tree) {
  int roots = 0;
  for (int rank = 0; rank < tree.world(); ++rank) roots += tree.root_count(rank);
  return roots;
}

// How many elements go at a time, so that `floats` hold the roots of all ranks of what one rank
// adds. The same on all ranks.
int64_t PieceOf(const SumTree& tree, int64_t elements, bool slices, int64_t floats) {
  const int64_t most = floats / RootCount(tree) / kLineFloats * kLineFloats;
  FACET_CHECK(most > 0, "a buffer of {} floats for {} roots", floats, RootCount(tree));
  return std::clamp<int64_t>(elements, 1, slices ? most * tree.world() : most);
}

}  // namespace

TcpCommunicator::TcpCommunicator(int rank, std::vector<UniqueFd> sockets, size_t buffer_bytes,
                                 const ExchangeOptions& options)
    : exchange_(rank, std::move(sockets), options), buffer_(buffer_bytes / sizeof(float)) {
  FACET_CHECK(buffer_bytes >= kTcpBufferBytesMin, "a buffer of {} bytes", buffer_bytes);
}

template <typename Body>
absl::Status TcpCommunicator::Call(const CallSubject& subject, const Body& body) {
  const std::lock_guard lock(mutex_);
  FACET_RETURN_IF_ERROR(exchange_.BeginCall(subject));
  absl::Status status = body();
  exchange_.EndCall();
  return status;
}

template <typename Fn>
void TcpCommunicator::ForPeers(const Fn& fn) {
  for (int peer = 0; peer < world(); ++peer) {
    if (peer != rank()) fn(peer);
  }
}

// Wakes the call that is under way, if one is, which then fails and returns soon.
void TcpCommunicator::Abort() {
  exchange_.Interrupt();
  const std::lock_guard lock(mutex_);
  exchange_.FailAborted().IgnoreError();
}

absl::Status TcpCommunicator::Look() {
  const std::lock_guard lock(mutex_);
  return exchange_.Look();
}

absl::Status TcpCommunicator::Fail(const absl::Status& reason) {
  const std::lock_guard lock(mutex_);
  return exchange_.Fail(reason.code(), MessageOf(reason));
}

absl::Status TcpCommunicator::AllReduceSum(const SumTree& tree, const float* roots,
                                           int64_t elements, float* out) {
  const CallSubject subject = AllReduceOf(tree, elements, world());
  const bool slices = AddsSlices(tree, elements);
  const int64_t piece = PieceOf(tree, elements, slices, static_cast<int64_t>(buffer_.size()));
  return Call(WithDetail(subject, static_cast<uint64_t>(piece)), [&] {
    return slices ? ReduceInSlices(tree, roots, elements, piece, out)
                  : ReduceEverywhere(tree, roots, elements, piece, out);
  });
}

std::span<const iovec> TcpCommunicator::RootParts(const SumTree& tree, const float* roots,
                                                  int64_t elements, int64_t begin, int64_t length) {
  parts_.clear();
  for (int root = 0; root < tree.root_count(rank()); ++root) {
    parts_.push_back(PartOf(
        std::as_bytes(std::span(roots + root * elements + begin, static_cast<size_t>(length)))));
  }
  return parts_;
}

void TcpCommunicator::WantRoots(const SumTree& tree, int64_t length) {
  float* place = buffer_.data();
  ForPeers([&](int peer) {
    const int64_t floats = tree.root_count(peer) * length;
    exchange_.Want(peer, std::as_writable_bytes(std::span(place, static_cast<size_t>(floats))));
    place += floats;
  });
}

void TcpCommunicator::FinishTree(const SumTree& tree, const float* roots, int64_t elements,
                                 int64_t begin, int64_t length, float* out) {
  root_addresses_.clear();
  const float* place = buffer_.data();
  for (int owner = 0; owner < world(); ++owner) {
    for (int root = 0; root < tree.root_count(owner); ++root) {
      if (owner == rank()) {
        root_addresses_.push_back(roots + root * elements + begin);
      } else {
        root_addresses_.push_back(std::exchange(place, place + length));
      }
    }
  }
  tree.Finish(root_addresses_, length, out + begin);
}

// Every rank sends all its roots to all and finishes the tree for itself.
absl::Status TcpCommunicator::ReduceEverywhere(const SumTree& tree, const float* roots,
                                               int64_t elements, int64_t piece, float* out) {
  int64_t begin = 0;
  do {
    const int64_t length = std::min(piece, elements - begin);
    const std::span<const iovec> parts = RootParts(tree, roots, elements, begin, length);
    ForPeers([&](int peer) { exchange_.Send(peer, parts); });
    WantRoots(tree, length);
    FACET_RETURN_IF_ERROR(exchange_.Run());
    FinishTree(tree, roots, elements, begin, length, out);
    begin += length;
  } while (begin < elements);
  return absl::OkStatus();
}

// Every rank gets the roots of its slice, finishes the tree for it, and sends its sums to all.
absl::Status TcpCommunicator::ReduceInSlices(const SumTree& tree, const float* roots,
                                             int64_t elements, int64_t piece, float* out) {
  for (int64_t begin = 0; begin < elements; begin += piece) {
    const int64_t length = std::min(piece, elements - begin);
    const Slice mine = SliceOf(rank(), world(), length);
    ForPeers([&](int peer) {
      const Slice theirs = SliceOf(peer, world(), length);
      exchange_.Send(peer, RootParts(tree, roots, elements, begin + theirs.begin, theirs.length));
    });
    WantRoots(tree, mine.length);
    FACET_RETURN_IF_ERROR(exchange_.Run());
    FinishTree(tree, roots, elements, begin + mine.begin, mine.length, out);
    const iovec sums = PartOf(
        std::as_bytes(std::span(out + begin + mine.begin, static_cast<size_t>(mine.length))));
    ForPeers([&](int peer) {
      const Slice theirs = SliceOf(peer, world(), length);
      exchange_.Send(peer, {&sums, 1});
      exchange_.Want(peer, std::as_writable_bytes(std::span(out + begin + theirs.begin,
                                                            static_cast<size_t>(theirs.length))));
    });
    FACET_RETURN_IF_ERROR(exchange_.Run());
  }
  return absl::OkStatus();
}

absl::Status TcpCommunicator::AllGather(std::span<const float> mine,
                                        std::span<const int64_t> counts, float* out) {
  return Call(AllGatherOf(mine, counts, rank(), world()), [&] {
    float* place = out;
    const iovec part = PartOf(std::as_bytes(mine));
    for (int owner = 0; owner < world(); ++owner) {
      if (owner != rank()) {
        exchange_.Send(owner, {&part, 1});
        exchange_.Want(
            owner, std::as_writable_bytes(std::span(place, static_cast<size_t>(counts[owner]))));
      } else if (!mine.empty() && place != mine.data()) {
        std::memmove(place, mine.data(), mine.size_bytes());
      }
      place += counts[owner];
    }
    return exchange_.Run();
  });
}

absl::Status TcpCommunicator::AllGatherBytes(std::span<const std::byte> mine,
                                             std::vector<std::vector<std::byte>>* out) {
  return Call({Operation::kAllGatherBytes, mine.size()}, [&]() -> absl::Status {
    FACET_RETURN_IF_ERROR(exchange_.CheckMessageSize(rank(), mine.size()));
    out->resize(static_cast<size_t>(world()));
    (*out)[rank()].assign(mine.begin(), mine.end());
    const iovec part = PartOf(mine);
    ForPeers([&](int peer) {
      exchange_.Send(peer, {&part, 1});
      exchange_.WantMessage(peer, &(*out)[peer]);
    });
    return exchange_.Run();
  });
}

// Rank 0 does not wait for the followers to arrive: what it sends waits for them.
absl::Status TcpCommunicator::Broadcast(std::vector<std::byte>* message) {
  const uint64_t bytes = rank() == 0 ? message->size() : 0;
  return Call({Operation::kBroadcast, bytes}, [&]() -> absl::Status {
    if (rank() != 0) {
      exchange_.WantMessage(0, message);
      return exchange_.Run();
    }
    FACET_RETURN_IF_ERROR(exchange_.CheckMessageSize(0, bytes));
    const iovec part = PartOf(*message);
    ForPeers([&](int peer) { exchange_.Send(peer, {&part, 1}); });
    return exchange_.Run();
  });
}

absl::Status TcpCommunicator::Meet(const CallSubject& subject) {
  return Call(subject, [&] {
    ForPeers([&](int peer) {
      exchange_.Send(peer, {});
      exchange_.Want(peer, {});
    });
    return exchange_.Run();
  });
}

}  // namespace facet
