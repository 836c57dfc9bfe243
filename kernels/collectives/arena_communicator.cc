#include "kernels/collectives/arena_communicator.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/prng.h"
#include "base/status.h"
#include "kernels/collectives/futex.h"

namespace facet {
namespace {

// So that deadlines do not overflow: longer than anyone waits.
constexpr std::chrono::milliseconds kTimeoutMax = std::chrono::hours(24 * 365);
// Looks at a counter between two looks at the clock.
constexpr int kSpinsPerLook = 32;
// Slices begin at cache lines.
constexpr int64_t kLineFloats = 16;
// Above this a rank adds only its slice of the elements (README has the measurement).
constexpr int64_t kSliceBytesMin = 16 << 10;

void Pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

bool Arrived(uint32_t counter, uint32_t round) {
  return static_cast<int32_t>((counter & ~kFailedBit) - round) >= 0;
}

int64_t RoundUp(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

std::chrono::nanoseconds SpinFor(const ArenaOptions& options, int world) {
  if (sysconf(_SC_NPROCESSORS_ONLN) < world) return std::chrono::nanoseconds(0);
  return options.spin;
}

template <typename Int>
uint32_t DigestOf(std::span<const Int> values) {
  uint64_t digest = values.size();
  for (const Int value : values) digest = Mix64(digest, static_cast<uint64_t>(value));
  return static_cast<uint32_t>(digest >> 32);
}

int RootCountMax(const SumTree& tree) {
  int most = 0;
  for (int rank = 0; rank < tree.world(); ++rank) most = std::max(most, tree.root_count(rank));
  return most;
}

// Elements [begin, begin + length) of each root, `stride` floats apart in `buffer`.
void CopyRoots(const float* roots, int count, int64_t elements, int64_t begin, int64_t length,
               int64_t stride, float* buffer) {
  for (int root = 0; root < count; ++root) {
    std::memcpy(buffer + root * stride, roots + root * elements + begin,
                static_cast<size_t>(length) * sizeof(float));
  }
}

// The part of `length` elements that `rank` adds.
struct Slice {
  int64_t begin;
  int64_t length;
};
Slice SliceOf(int rank, int world, int64_t length) {
  const int64_t most = RoundUp((length + world - 1) / world, kLineFloats);
  const int64_t begin = std::min(rank * most, length);
  return {begin, std::min(most, length - begin)};
}

void CopyFloats(float* to, const float* from, int64_t count) {
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

double Seconds(std::chrono::nanoseconds duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

ArenaCommunicator::ArenaCommunicator(Arena arena, int rank, const ArenaOptions& options)
    : arena_(std::move(arena)),
      rank_(rank),
      spin_(SpinFor(options, arena_.world())),
      message_bytes_max_(options.message_bytes_max),
      agreed_(static_cast<size_t>(arena_.world()), kBeforeFirstRound) {
  FACET_CHECK(rank >= 0 && rank < arena_.world(), "rank {} of {}", rank, arena_.world());
}

void ArenaCommunicator::SetTimeout(std::chrono::milliseconds timeout) {
  timeout_ = std::min(timeout, kTimeoutMax);
}

void ArenaCommunicator::Abort() {
  arena_.Fail(absl::StatusCode::kAborted, fmt::format("rank {} aborted the group", rank_))
      .IgnoreError();
}

Communicator::Times ArenaCommunicator::TakeTimes() { return std::exchange(times_, Times{}); }

// ---------------------------------------------------------------------------------------------
// Rounds

template <typename Body>
absl::Status ArenaCommunicator::Call(Operation operation, uint64_t size, uint32_t layout,
                                     const Body& body) {
  const Clock::time_point begin = Clock::now();
  deadline_ = begin + timeout_;
  header_ = {step_, size, layout, static_cast<uint32_t>(operation)};
  const uint32_t counter = arena_.rank(rank_).rounds.load(std::memory_order_acquire);
  if ((counter & kFailedBit) != 0) return arena_.Failure();
  const double wait_before_s = times_.wait_s;
  absl::Status status = body();
  const double waited_s = times_.wait_s - wait_before_s;
  times_.work_s += Seconds(Clock::now() - begin) - waited_s;
  return status;
}

// A peer that has entered round_ has left the one before, in which it read the buffer that is
// now written.
absl::Status ArenaCommunicator::NextBuffer(std::byte** buffer) {
  FACET_RETURN_IF_ERROR(AwaitAll());
  *buffer = arena_.buffer(rank_, round_ + kRoundStep);
  return absl::OkStatus();
}

void ArenaCommunicator::Enter() {
  round_ += kRoundStep;
  arena_.header(rank_, round_) = header_;
  arena_.EnterRound(rank_);
}

absl::Status ArenaCommunicator::AwaitAll() {
  for (int peer = 0; peer < world(); ++peer) {
    if (peer != rank_) FACET_RETURN_IF_ERROR(AwaitRound(peer, round_));
  }
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::AwaitRound(int peer, uint32_t round) {
  if (agreed_[peer] == round) return absl::OkStatus();
  const uint32_t counter = arena_.rank(peer).rounds.load(std::memory_order_acquire);
  if (!Arrived(counter, round) || (counter & kFailedBit) != 0) {
    FACET_RETURN_IF_ERROR(WaitFor(peer, round));
  }
  FACET_RETURN_IF_ERROR(CheckHeader(peer, round));
  agreed_[peer] = round;
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::WaitFor(int peer, uint32_t round) {
  RankState& state = arena_.rank(peer);
  const Clock::time_point begin = Clock::now();
  uint32_t counter = Spin(state, round, begin);
  if (!Arrived(counter, round) && (counter & kFailedBit) == 0) counter = Sleep(state, round);
  times_.wait_s += Seconds(Clock::now() - begin);
  if ((counter & kFailedBit) != 0) return arena_.Failure();
  return Arrived(counter, round) ? absl::OkStatus() : FailLate(round);
}

uint32_t ArenaCommunicator::Spin(const RankState& state, uint32_t round,
                                 Clock::time_point begin) const {
  const Clock::time_point end = std::min(begin + spin_, deadline_);
  do {
    for (int i = 0; i < kSpinsPerLook; ++i) {
      const uint32_t counter = state.rounds.load(std::memory_order_acquire);
      if (Arrived(counter, round) || (counter & kFailedBit) != 0) return counter;
      Pause();
    }
  } while (Clock::now() < end);
  return state.rounds.load(std::memory_order_acquire);
}

uint32_t ArenaCommunicator::Sleep(RankState& state, uint32_t round) const {
  state.sleepers.fetch_add(1, std::memory_order_seq_cst);  // see Arena::EnterRound
  uint32_t counter = state.rounds.load(std::memory_order_seq_cst);
  while (!Arrived(counter, round) && (counter & kFailedBit) == 0) {
    const std::chrono::nanoseconds left = deadline_ - Clock::now();
    if (left <= std::chrono::nanoseconds(0)) break;
    FutexWait(state.rounds, counter, left);
    counter = state.rounds.load(std::memory_order_seq_cst);
  }
  state.sleepers.fetch_sub(1, std::memory_order_relaxed);
  return counter;
}

absl::Status ArenaCommunicator::FailLate(uint32_t round) const {
  std::string late;
  int count = 0;
  for (int peer = 0; peer < world(); ++peer) {
    if (peer == rank_) continue;
    if (Arrived(arena_.rank(peer).rounds.load(std::memory_order_acquire), round)) continue;
    late += fmt::format("{}{}", count++ == 0 ? "" : ", ", peer);
  }
  return arena_.Fail(absl::StatusCode::kDeadlineExceeded,
                     fmt::format("rank{} {} did not arrive at {} within {} ms (rank {} waited)",
                                 count > 1 ? "s" : "", late,
                                 Describe(arena_.header(rank_, round)), timeout_.count(), rank_));
}

const char* ArenaCommunicator::NameOf(uint32_t operation) {
  switch (static_cast<Operation>(operation)) {
    case Operation::kAllReduce: return "all-reduce";
    case Operation::kAllGather: return "all-gather";
    case Operation::kAllGatherBytes: return "all-gather of bytes";
    case Operation::kBroadcast: return "broadcast";
    case Operation::kBarrier: return "barrier";
  }
  return "an unknown operation";
}

bool ArenaCommunicator::SizesMustAgree(uint32_t operation) {
  return operation == static_cast<uint32_t>(Operation::kAllReduce) ||
         operation == static_cast<uint32_t>(Operation::kAllGather);
}

std::string ArenaCommunicator::Describe(const RoundHeader& header) {
  return fmt::format("{} of step {}", NameOf(header.operation), header.step);
}

absl::Status ArenaCommunicator::CheckHeader(int peer, uint32_t round) const {
  const RoundHeader& mine = arena_.header(rank_, round);
  const RoundHeader& theirs = arena_.header(peer, round);
  std::string difference;
  if (theirs.operation != mine.operation || theirs.step != mine.step) {
    difference = fmt::format("rank {} is in {}, rank {} in {}", peer, Describe(theirs), rank_,
                             Describe(mine));
  } else if (!SizesMustAgree(mine.operation)) {
    return absl::OkStatus();
  } else if (theirs.size != mine.size) {
    difference = fmt::format("rank {} is in {} with {} elements, rank {} with {}", peer,
                             Describe(theirs), theirs.size, rank_, mine.size);
  } else if (theirs.layout != mine.layout) {
    difference = fmt::format("rank {} and rank {} are in {} with {} elements each, but divide them "
                             "differently between the ranks",
                             peer, rank_, Describe(mine), mine.size);
  } else {
    return absl::OkStatus();
  }
  return arena_.Fail(absl::StatusCode::kFailedPrecondition, difference);
}

// ---------------------------------------------------------------------------------------------
// Operations

absl::Status ArenaCommunicator::AllReduceSum(const SumTree& tree, const float* roots,
                                             int64_t elements, float* out) {
  FACET_CHECK(tree.world() == world(), "a tree for {} ranks, a group of {}", tree.world(),
              world());
  const uint32_t layout = DigestOf(std::span<const int>(tree.rank_begin()));
  return Call(Operation::kAllReduce, static_cast<uint64_t>(elements), layout, [&] {
    if (world() == 1) {
      tree.Finish({&roots, 1}, elements, out);
      return absl::OkStatus();
    }
    const int64_t bytes = elements * RootCountMax(tree) * static_cast<int64_t>(sizeof(float));
    if (world() == 2 || bytes < kSliceBytesMin) {
      return ReduceEverywhere(tree, roots, elements, out);
    }
    return ReduceInSlices(tree, roots, elements, out);
  });
}

// Every rank sends all its roots and finishes the tree for itself: one round per piece.
absl::Status ArenaCommunicator::ReduceEverywhere(const SumTree& tree, const float* roots,
                                                 int64_t elements, float* out) {
  const int64_t capacity = static_cast<int64_t>(arena_.buffer_bytes() / sizeof(float));
  const int64_t most = capacity / RootCountMax(tree) / kLineFloats * kLineFloats;
  int64_t begin = 0;
  do {
    const int64_t length = std::min(most, elements - begin);
    const int64_t stride = RoundUp(length, kLineFloats);
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(NextBuffer(&buffer));
    CopyRoots(roots, tree.root_count(rank_), elements, begin, length, stride,
              reinterpret_cast<float*>(buffer));
    Enter();
    FACET_RETURN_IF_ERROR(AwaitAll());
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
  const int64_t capacity = static_cast<int64_t>(arena_.buffer_bytes() / sizeof(float));
  const int64_t unit = kLineFloats * ranks;
  const int64_t most =
      std::min(capacity / (RootCountMax(tree) * ranks + 1) * ranks / unit * unit,
               RoundUp(elements, unit));
  const int64_t sums_at = RootCountMax(tree) * most;  // behind the roots
  FACET_CHECK(most > 0, "slots of {} bytes for {} ranks", arena_.buffer_bytes() * 2, ranks);
  int64_t sums = 0;  // elements of the piece before `begin`, whose slices are finished
  for (int64_t begin = 0;; begin += sums) {
    const int64_t length = std::min(most, elements - begin);
    std::byte* bytes;
    FACET_RETURN_IF_ERROR(NextBuffer(&bytes));
    float* buffer = reinterpret_cast<float*>(bytes);
    if (length > 0) {
      CopyRoots(roots, tree.root_count(rank_), elements, begin, length, most, buffer);
    }
    const Slice finished = SliceOf(rank_, ranks, sums);
    CopyFloats(buffer + sums_at, out + begin - sums + finished.begin, finished.length);
    Enter();
    FACET_RETURN_IF_ERROR(AwaitAll());
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank_) continue;
      const Slice theirs = SliceOf(peer, ranks, sums);
      CopyFloats(out + begin - sums + theirs.begin,
                 reinterpret_cast<const float*>(arena_.buffer(peer, round_)) + sums_at,
                 theirs.length);
    }
    if (length <= 0) return absl::OkStatus();
    const Slice mine = SliceOf(rank_, ranks, length);
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
  for (int rank = 0; rank < world(); ++rank) {
    const float* first =
        rank == rank_ ? roots + begin : reinterpret_cast<float*>(arena_.buffer(rank, round_));
    const int64_t distance = rank == rank_ ? elements : stride;
    for (int root = 0; root < tree.root_count(rank); ++root) {
      root_addresses_.push_back(first + root * distance + offset);
    }
  }
  tree.Finish(root_addresses_, length, out + begin + offset);
}

template <typename Places>
absl::Status ArenaCommunicator::Gather(std::span<const std::byte> mine, const Places& places) {
  const size_t capacity = arena_.buffer_bytes();
  std::vector<std::span<std::byte>> to;
  size_t longest = 0;
  size_t begin = 0;
  do {
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(NextBuffer(&buffer));
    if (begin < mine.size()) {
      std::memcpy(buffer, mine.data() + begin, std::min(capacity, mine.size() - begin));
    }
    Enter();
    FACET_RETURN_IF_ERROR(AwaitAll());
    if (begin == 0) {
      FACET_RETURN_IF_ERROR(places(&to));
      for (const std::span<std::byte> place : to) longest = std::max(longest, place.size());
      if (!mine.empty()) std::memmove(to[rank_].data(), mine.data(), mine.size());
    }
    for (int peer = 0; peer < world(); ++peer) {
      if (peer == rank_ || begin >= to[peer].size()) continue;
      std::memcpy(to[peer].data() + begin, arena_.buffer(peer, round_),
                  std::min(capacity, to[peer].size() - begin));
    }
    begin += capacity;
  } while (begin < longest);
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::AllGather(std::span<const float> mine,
                                          std::span<const int64_t> counts, float* out) {
  FACET_CHECK(static_cast<int>(counts.size()) == world() &&
                  counts[rank_] == static_cast<int64_t>(mine.size()),
              "counts do not match rank {} of {}", rank_, world());
  uint64_t total = 0;
  for (const int64_t count : counts) total += static_cast<uint64_t>(count);
  return Call(Operation::kAllGather, total, DigestOf(counts), [&] {
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
  return Call(Operation::kAllGatherBytes, mine.size(), 0, [&] {
    FACET_RETURN_IF_ERROR(CheckMessageSize(rank_, mine.size()));
    return Gather(mine, [&](std::vector<std::span<std::byte>>* to) -> absl::Status {
      out->resize(static_cast<size_t>(world()));
      for (int rank = 0; rank < world(); ++rank) {
        const uint64_t bytes = arena_.header(rank, round_).size;
        FACET_RETURN_IF_ERROR(CheckMessageSize(rank, bytes));
        (*out)[rank].resize(bytes);
        to->push_back((*out)[rank]);
      }
      return absl::OkStatus();
    });
  });
}

absl::Status ArenaCommunicator::CheckMessageSize(int sender, uint64_t bytes) const {
  if (bytes <= message_bytes_max_) return absl::OkStatus();
  return arena_.Fail(absl::StatusCode::kResourceExhausted,
                     fmt::format("rank {} sends {} bytes in {}, rank {} accepts at most {}", sender,
                                 bytes, Describe(header_), rank_, message_bytes_max_));
}

absl::Status ArenaCommunicator::Broadcast(std::vector<std::byte>* message) {
  const uint64_t bytes = rank_ == 0 ? message->size() : 0;
  return Call(Operation::kBroadcast, bytes, 0, [&] {
    return rank_ == 0 ? SendBroadcast(*message) : ReceiveBroadcast(message);
  });
}

// Does not wait for the followers to arrive: they wake while the leader goes on.
absl::Status ArenaCommunicator::SendBroadcast(std::span<const std::byte> message) {
  FACET_RETURN_IF_ERROR(CheckMessageSize(rank_, message.size()));
  const size_t capacity = arena_.buffer_bytes();
  size_t begin = 0;
  do {
    std::byte* buffer;
    FACET_RETURN_IF_ERROR(NextBuffer(&buffer));
    const size_t length = std::min(capacity, message.size() - begin);
    if (length > 0) std::memcpy(buffer, message.data() + begin, length);
    Enter();
    begin += capacity;
  } while (begin < message.size());
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::ReceiveBroadcast(std::vector<std::byte>* message) {
  const size_t capacity = arena_.buffer_bytes();
  size_t begin = 0;
  do {
    std::byte* unused;
    FACET_RETURN_IF_ERROR(NextBuffer(&unused));
    Enter();
    FACET_RETURN_IF_ERROR(Await(0));
    if (begin == 0) {
      const uint64_t bytes = arena_.header(0, round_).size;
      FACET_RETURN_IF_ERROR(CheckMessageSize(0, bytes));
      message->resize(bytes);
    }
    const size_t length = std::min(capacity, message->size() - begin);
    if (length > 0) std::memcpy(message->data() + begin, arena_.buffer(0, round_), length);
    begin += capacity;
  } while (begin < message->size());
  return absl::OkStatus();
}

absl::Status ArenaCommunicator::Barrier() {
  return Call(Operation::kBarrier, 0, 0, [&] {
    std::byte* unused;
    FACET_RETURN_IF_ERROR(NextBuffer(&unused));
    Enter();
    return AwaitAll();
  });
}

}  // namespace facet
