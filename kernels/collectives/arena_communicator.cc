#include "kernels/collectives/arena_communicator.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/slices.h"

namespace facet {
namespace {

void CopyFloats(float* to, const float* from, int64_t count) {
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// Elements [begin, begin + length) of each root, `stride` floats apart in `buffer`.
void CopyRoots(const float* roots, int count, int64_t elements, int64_t begin, int64_t length,
               int64_t stride, float* buffer) {
  for (int root = 0; root < count; ++root) {
    CopyFloats(buffer + root * stride, roots + root * elements + begin, length);
  }
}

}  // namespace

ArenaCommunicator::ArenaCommunicator(Arena arena, int rank, const ArenaOptions& options)
    : rounds_(std::move(arena), rank, options), message_bytes_max_(options.message_bytes_max) {}

void ArenaCommunicator::Abort() {
  rounds_.Fail(absl::StatusCode::kAborted, fmt::format("rank {} aborted the group", rank()))
      .IgnoreError();
}

absl::Status ArenaCommunicator::Look() { return rounds_.Look(); }

absl::Status ArenaCommunicator::Fail(const absl::Status& reason) {
  return rounds_.Fail(reason.code(), MessageOf(reason));
}

template <typename Body>
absl::Status ArenaCommunicator::Call(const CallSubject& subject, const Body& body) {
  FACET_RETURN_IF_ERROR(rounds_.BeginCall(subject));
  absl::Status status = body();
  rounds_.EndCall();
  return status;
}

absl::Status ArenaCommunicator::AllReduceSum(const SumTree& tree, const float* roots,
                                             int64_t elements, float* out) {
  return Call(AllReduceOf(tree, elements, world()), [&] {
    if (world() == 1) {
      tree.Finish({&roots, 1}, elements, out);
      return absl::OkStatus();
    }
    return AddsSlices(tree, elements) ? ReduceInSlices(tree, roots, elements, out)
                                      : ReduceEverywhere(tree, roots, elements, out);
  });
}

// Every rank sends all its roots and finishes the tree for itself: one round per piece.
absl::Status ArenaCommunicator::ReduceEverywhere(const SumTree& tree, const float* roots,
                                                 int64_t elements, float* out) {
  const int64_t capacity = static_cast<int64_t>(rounds_.buffer_bytes() / sizeof(float));
  const int64_t most = capacity / RootCountMax(tree) / kLineFloats * kLineFloats;
  int64_t begin = 0;
  do {
    const int64_t length = std::min(most, elements - begin);
    const int64_t stride = RoundUp(length, kLineFloats);
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&buffer));
    CopyRoots(roots, tree.root_count(rank()), elements, begin, length, stride,
              reinterpret_cast<float*>(buffer));
    rounds_.Enter();
    FACET_RETURN_IF_ERROR(rounds_.AwaitAll());
    FinishTree(tree, roots, elements, begin, stride, 0, length, out);
    begin += length;
  } while (begin < elements);
  return absl::OkStatus();
}

// Every rank finishes the tree for its slice of a piece and sends the sums with the roots of the
// next piece: a rank reads and adds its share only, for one round more.
absl::Status ArenaCommunicator::ReduceInSlices(const SumTree& tree, const float* roots,
                                               int64_t elements, float* out) {
  const int ranks = world();
  const int64_t capacity = static_cast<int64_t>(rounds_.buffer_bytes() / sizeof(float));
  const int64_t unit = kLineFloats * ranks;
  const int64_t most = std::min(capacity / (RootCountMax(tree) * ranks + 1) * ranks / unit * unit,
                                RoundUp(elements, unit));
  const int64_t sums_at = RootCountMax(tree) * most;  // behind the roots
  FACET_CHECK(most > 0, "slots of {} bytes for {} ranks", rounds_.buffer_bytes() * 2, ranks);
  int64_t sums = 0;  // elements of the piece before `begin`, whose slices are finished
  for (int64_t begin = 0;; begin += sums) {
    const int64_t length = std::min(most, elements - begin);
    std::byte* bytes;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&bytes));
    float* buffer = reinterpret_cast<float*>(bytes);
    if (length > 0) {
      CopyRoots(roots, tree.root_count(rank()), elements, begin, length, most, buffer);
    }
    const Slice finished = SliceOf(rank(), ranks, sums);
    CopyFloats(buffer + sums_at, out + begin - sums + finished.begin, finished.length);
    rounds_.Enter();
    FACET_RETURN_IF_ERROR(rounds_.AwaitAll());
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank()) continue;
      const Slice theirs = SliceOf(peer, ranks, sums);
      CopyFloats(out + begin - sums + theirs.begin,
                 reinterpret_cast<const float*>(rounds_.BufferOf(peer)) + sums_at, theirs.length);
    }
    if (length <= 0) return absl::OkStatus();
    const Slice mine = SliceOf(rank(), ranks, length);
    FinishTree(tree, roots, elements, begin, most, mine.begin, mine.length, out);
    sums = length;
  }
}

// Finishes the tree for elements [offset, offset + length) of the piece at `begin`: this rank's
// roots where they are, the peers' in their buffers, `stride` floats apart.
void ArenaCommunicator::FinishTree(const SumTree& tree, const float* roots, int64_t elements,
                                   int64_t begin, int64_t stride, int64_t offset, int64_t length,
                                   float* out) {
  root_addresses_.clear();
  for (int owner = 0; owner < world(); ++owner) {
    for (int root = 0; root < tree.root_count(owner); ++root) {
      root_addresses_.push_back(owner == rank()
                                    ? roots + root * elements + begin + offset
                                    : reinterpret_cast<const float*>(rounds_.BufferOf(owner)) +
                                          root * stride + offset);
    }
  }
  tree.Finish(root_addresses_, length, out + begin + offset);
}

template <typename Places>
absl::Status ArenaCommunicator::Gather(std::span<const std::byte> mine, const Places& places) {
  const size_t capacity = rounds_.buffer_bytes();
  std::vector<std::span<std::byte>>& to = places_;
  to.clear();
  size_t longest = 0;
  size_t begin = 0;
  do {
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&buffer));
    if (begin < mine.size()) {
      std::memcpy(buffer, mine.data() + begin, std::min(capacity, mine.size() - begin));
    }
    rounds_.Enter();
    FACET_RETURN_IF_ERROR(rounds_.AwaitAll());
    if (begin == 0) {
      FACET_RETURN_IF_ERROR(places(&to));
      for (const std::span<std::byte> place : to) longest = std::max(longest, place.size());
      if (!mine.empty()) std::memmove(to[rank()].data(), mine.data(), mine.size());
    }
    for (int peer = 0; peer < world(); ++peer) {
      if (peer == rank() || begin >= to[peer].size()) continue;
      std::memcpy(to[peer].data() + begin, rounds_.BufferOf(peer),
                  std::min(capacity, to[peer].size() - begin));
    }
    begin += capacity;
  } while (begin < longest);
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::AllGather(std::span<const float> mine,
                                          std::span<const int64_t> counts, float* out) {
  return Call(AllGatherOf(mine, counts, rank(), world()), [&] {
    return Gather(std::as_bytes(mine), [&](std::vector<std::span<std::byte>>* to) {
      float* place = out;
      for (const int64_t count : counts) {
        to->push_back(std::as_writable_bytes(std::span(place, static_cast<size_t>(count))));
        place += count;
      }
      return absl::OkStatus();
    });
  });
}

absl::Status ArenaCommunicator::AllGatherBytes(std::span<const std::byte> mine,
                                               std::vector<std::vector<std::byte>>* out) {
  return Call({Operation::kAllGatherBytes, mine.size()}, [&] {
    FACET_RETURN_IF_ERROR(CheckMessageSize(rank(), mine.size()));
    return Gather(mine, [&](std::vector<std::span<std::byte>>* to) -> absl::Status {
      out->resize(static_cast<size_t>(world()));
      for (int sender = 0; sender < world(); ++sender) {
        const uint64_t bytes = rounds_.SizeOf(sender);
        FACET_RETURN_IF_ERROR(CheckMessageSize(sender, bytes));
        (*out)[sender].resize(bytes);
        to->push_back((*out)[sender]);
      }
      return absl::OkStatus();
    });
  });
}

absl::Status ArenaCommunicator::CheckMessageSize(int sender, uint64_t bytes) const {
  if (bytes <= message_bytes_max_) return absl::OkStatus();
  return rounds_.Fail(
      absl::StatusCode::kResourceExhausted,
      fmt::format("rank {} sends {} bytes in {}, rank {} accepts at most {}", sender, bytes,
                  rounds_.DescribeCall(), rank(), message_bytes_max_));
}

absl::Status ArenaCommunicator::Broadcast(std::vector<std::byte>* message) {
  const uint64_t bytes = rank() == 0 ? message->size() : 0;
  return Call({Operation::kBroadcast, bytes},
              [&] { return rank() == 0 ? SendBroadcast(*message) : ReceiveBroadcast(message); });
}

// Does not wait for the followers to arrive: they wake while the leader goes on.
absl::Status ArenaCommunicator::SendBroadcast(std::span<const std::byte> message) {
  FACET_RETURN_IF_ERROR(CheckMessageSize(rank(), message.size()));
  const size_t capacity = rounds_.buffer_bytes();
  size_t begin = 0;
  do {
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&buffer));
    const size_t length = std::min(capacity, message.size() - begin);
    if (length > 0) std::memcpy(buffer, message.data() + begin, length);
    rounds_.Enter();
    begin += capacity;
  } while (begin < message.size());
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::ReceiveBroadcast(std::vector<std::byte>* message) {
  const size_t capacity = rounds_.buffer_bytes();
  size_t begin = 0;
  do {
    std::byte* unused;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&unused));
    rounds_.Enter();
    FACET_RETURN_IF_ERROR(rounds_.Await(0));
    if (begin == 0) {
      const uint64_t bytes = rounds_.SizeOf(0);
      FACET_RETURN_IF_ERROR(CheckMessageSize(0, bytes));
      message->resize(bytes);
    }
    const size_t length = std::min(capacity, message->size() - begin);
    if (length > 0) std::memcpy(message->data() + begin, rounds_.BufferOf(0), length);
    begin += capacity;
  } while (begin < message->size());
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::Meet(const CallSubject& subject) {
  return Call(subject, [&] {
    std::byte* unused;
    FACET_RETURN_IF_ERROR(rounds_.NextBuffer(&unused));
    rounds_.Enter();
    return rounds_.AwaitAll();
  });
}

}  // namespace facet
