// The conformance suite's first half: what every backend computes, against the naive definitions.

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/prng.h"
#include "base/status.h"
#include "kernels/sum_tree.h"
#include "tests/collectives/tested_backends.h"
#include "tests/collectives/tree_oracle.h"

namespace facet {
namespace {

constexpr int kLeavesMax = 16;
constexpr int64_t kElementsMax = 70'001;

ArenaOptions SmallSlots() {
  ArenaOptions options;
  options.slot_bytes = kMinSlotBytes;
  return options;
}

// Leaf values and the naive sums over every run of leaves, made once and then shared by all ranks:
// under sanitizers what a rank computes in order to check costs more than what is checked.
class TreeInputs {
 public:
  TreeInputs() {
    for (int leaf = 0; leaf < kLeavesMax; ++leaf) {
      std::vector<float>& values = sums_[leaf][leaf + 1];
      for (int64_t i = 0; i < kElementsMax; ++i) values.push_back(LeafValue(leaf, i));
    }
    for (int leaves = 2; leaves <= kLeavesMax; ++leaves) {
      for (int begin = 0; begin + leaves <= kLeavesMax; ++begin) Add(begin, begin + leaves);
    }
  }

  // The first `elements` sums over leaves [begin, end).
  std::span<const float> sums(int begin, int end, int64_t elements) const {
    return std::span(sums_[begin][end]).first(static_cast<size_t>(elements));
  }

  // One rank's roots side by side.
  std::vector<float> Roots(const SumTree& tree, int rank, int64_t elements) const {
    std::vector<float> roots;
    for (const Subtree& root : tree.roots(rank)) {
      const std::span<const float> summed = sums(root.begin, root.end, elements);
      roots.insert(roots.end(), summed.begin(), summed.end());
    }
    return roots;
  }

 private:
  // REQUIRES: the sums over fewer leaves are there.
  void Add(int begin, int end) {
    int half = 1;
    while (half * 2 < end - begin) half *= 2;
    const std::vector<float>& left = sums_[begin][begin + half];
    const std::vector<float>& right = sums_[begin + half][end];
    std::vector<float>& sum = sums_[begin][end];
    sum.reserve(left.size());
    for (size_t i = 0; i < left.size(); ++i) sum.push_back(left[i] + right[i]);
  }

  std::vector<float> sums_[kLeavesMax][kLeavesMax + 1];  // [begin][end]
};

const TreeInputs& Inputs() {
  static const TreeInputs* inputs = new TreeInputs;
  return *inputs;
}

absl::Status CheckAllReduce(Communicator& comm, const SumTree& tree,
                            const std::vector<float>& roots, int64_t elements) {
  std::vector<float> out(static_cast<size_t>(elements), -1);
  FACET_RETURN_IF_ERROR(comm.AllReduceSum(tree, roots.data(), elements, out.data()));
  const std::span<const float> want = Inputs().sums(0, tree.leaves(), elements);
  if (elements == 0 || std::memcmp(out.data(), want.data(), want.size_bytes()) == 0) {
    return absl::OkStatus();
  }
  for (size_t i = 0; i < out.size(); ++i) {
    if (std::bit_cast<uint32_t>(out[i]) != std::bit_cast<uint32_t>(want[i])) {
      return Internal("element {} of {} over {} leaves: {} instead of {}", i, elements,
                      tree.leaves(), out[i], want[i]);
    }
  }
  return Internal("memcmp found what a comparison by elements did not");
}

// Sizes: nothing, one, odd ones, those of steps, and around where ranks begin to add slices (16 KiB
// of a rank's roots, of which it may have one to five).
absl::Status ReduceSizes(Communicator& comm, const SumTree& tree, bool slow) {
  for (const int64_t elements :
       {0, 1, 3, 16, 640, 1'365, 1'366, 4'095, 4'096, 4'097, 5'120, slow ? 8'193 : 70'001}) {
    const std::vector<float> roots = Inputs().Roots(tree, comm.rank(), elements);
    FACET_RETURN_IF_ERROR(CheckAllReduce(comm, tree, roots, elements));
  }
  return absl::OkStatus();
}

// Every leaf count from the world size on; of a slow backend, few.
absl::Status ReduceMatrix(Communicator& comm, bool slow) {
  for (int leaves = comm.world(); leaves <= kLeavesMax; leaves += slow ? 5 : 1) {
    const SumTree tree(leaves, EvenRanks(leaves, comm.world()));
    FACET_RETURN_IF_ERROR(ReduceSizes(comm, tree, slow));
  }
  return absl::OkStatus();
}

constexpr int kBytesRanks = 97;
constexpr size_t kBytesMax = 1'000'000;
constexpr size_t kBytesApart = 4'099;

// Random bytes, made once like TreeInputs.
const std::vector<std::byte>& RandomBytes() {
  static const auto* bytes = [] {
    auto* made = new std::vector<std::byte>;
    for (size_t i = 0; i < kBytesMax + kBytesRanks * kBytesApart; ++i) {
      made->push_back(static_cast<std::byte>(Mix64(i)));
    }
    return made;
  }();
  return *bytes;
}

// Others for each rank. REQUIRES: size <= kBytesMax, rank < kBytesRanks.
std::vector<std::byte> Bytes(int rank, size_t size) {
  const std::byte* begin = RandomBytes().data() + static_cast<size_t>(rank) * kBytesApart;
  return {begin, begin + size};
}

class Operations : public ::testing::TestWithParam<std::tuple<const Backend*, int>> {
 protected:
  Operations() {  // before threads or processes want them
    Inputs();
    RandomBytes();
  }

  void SetUp() override {
    if (world() > backend().ranks_max) {
      GTEST_SKIP() << backend().name << " has at most " << backend().ranks_max << " ranks here";
    }
  }

  const Backend& backend() const { return *std::get<0>(GetParam()); }
  int world() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(
    , Operations,
    ::testing::Combine(::testing::ValuesIn(BackendsThat([](const Backend&) { return true; })),
                       ::testing::Range(1, 9)),
    [](const auto& info) {
      return fmt::format("{}{}", std::get<0>(info.param)->name, std::get<1>(info.param));
    });

TEST_P(Operations, AllReduceGivesTheBitsOfTheNaiveTree) {
  const auto reduce = [this](Communicator& comm) { return ReduceMatrix(comm, backend().slow); };
  EXPECT_ALL_OK(backend().Run(world(), reduce));
}

TEST_P(Operations, AllReduceInManyPiecesGivesTheSameBits) {
  const auto reduce = [this](Communicator& comm) { return ReduceMatrix(comm, backend().slow); };
  EXPECT_ALL_OK(backend().Run(world(), reduce, SmallSlots()));
}

TEST_P(Operations, AllReduceTakesRanksWithoutLeaves) {
  EXPECT_ALL_OK(backend().Run(world(), [this](Communicator& comm) {
    std::vector<int> begin(static_cast<size_t>(comm.world()) + 1, 13);
    begin[0] = 0;  // rank 0 owns them all
    return ReduceSizes(comm, SumTree(13, begin), backend().slow);
  }));
}

TEST_P(Operations, AllGatherPutsUnevenPartsSideBySide) {
  const auto gather = [](Communicator& comm) -> absl::Status {
    for (const int64_t unit : {0, 1, 100, 2'047, 2'048, 2'049, 33'333}) {
      std::vector<int64_t> counts;
      std::vector<float> want;
      int64_t my_begin = 0;
      for (int rank = 0; rank < comm.world(); ++rank) {
        if (rank == comm.rank()) my_begin = static_cast<int64_t>(want.size());
        counts.push_back(unit * (rank % 3));  // some give nothing
        const std::span<const float> part = Inputs().sums(rank, rank + 1, counts.back());
        want.insert(want.end(), part.begin(), part.end());
      }
      const std::span<const float> mine =
          std::span(want).subspan(static_cast<size_t>(my_begin), counts[comm.rank()]);
      std::vector<float> out(want.size(), -1);
      FACET_RETURN_IF_ERROR(comm.AllGather(mine, counts, out.data()));
      if (out != want) return Internal("gathered something else, unit {}", unit);
      // The own part may be in its place already.
      std::fill(out.begin(), out.end(), -1.f);
      float* place = out.data() + my_begin;
      std::copy(mine.begin(), mine.end(), place);
      FACET_RETURN_IF_ERROR(comm.AllGather({place, mine.size()}, counts, out.data()));
      if (out != want) return Internal("gathered something else in place, unit {}", unit);
    }
    return absl::OkStatus();
  };
  EXPECT_ALL_OK(backend().Run(world(), gather));
  EXPECT_ALL_OK(backend().Run(world(), gather, SmallSlots()));
}

TEST_P(Operations, AllGatherBytesLearnsTheSizes) {
  const auto gather = [](Communicator& comm) -> absl::Status {
    std::vector<std::vector<std::byte>> out;  // keeps what the round before left in it
    for (const size_t unit : {0, 1, 8'191, 8'192, 8'193, 200'000}) {
      const auto size = [unit](int rank) { return unit * static_cast<size_t>((rank + 1) % 3); };
      FACET_RETURN_IF_ERROR(comm.AllGatherBytes(Bytes(comm.rank(), size(comm.rank())), &out));
      if (static_cast<int>(out.size()) != comm.world()) return Internal("{} parts", out.size());
      for (int rank = 0; rank < comm.world(); ++rank) {
        if (out[rank] != Bytes(rank, size(rank))) return Internal("unit {}, rank {}", unit, rank);
      }
    }
    return absl::OkStatus();
  };
  EXPECT_ALL_OK(backend().Run(world(), gather));
  EXPECT_ALL_OK(backend().Run(world(), gather, SmallSlots()));
}

TEST_P(Operations, BroadcastBringsAnySizeToAll) {
  const auto broadcast = [](Communicator& comm) -> absl::Status {
    std::vector<std::byte> message;
    for (const size_t size : {0, 1, 8'191, 8'192, 8'193, 1'000'000, 3}) {
      if (comm.rank() == 0) message = Bytes(9, size);
      FACET_RETURN_IF_ERROR(comm.Broadcast(&message));
      if (message != Bytes(9, size)) return Internal("another message of {} bytes", size);
    }
    return comm.Barrier();
  };
  EXPECT_ALL_OK(backend().Run(world(), broadcast));
  EXPECT_ALL_OK(backend().Run(world(), broadcast, SmallSlots()));
}

// One call of a random kind and size, checked; the same on every rank.
absl::Status RandomCall(Communicator& comm, uint64_t random) {
  const uint64_t kind = random % 16;
  const int64_t size =
      static_cast<int64_t>((random >> 8) % ((random >> 4) % 16 == 0 ? 20'000 : 700));
  if (kind == 0) return comm.Barrier();
  if (kind <= 2) {
    const std::vector<std::byte> want = Bytes(static_cast<int>(random % kBytesRanks), size);
    std::vector<std::byte> message = comm.rank() == 0 ? want : std::vector<std::byte>(3);
    FACET_RETURN_IF_ERROR(comm.Broadcast(&message));
    return message == want ? absl::OkStatus() : Internal("another message");
  }
  if (kind == 3) {
    std::vector<std::vector<std::byte>> out;
    FACET_RETURN_IF_ERROR(comm.AllGatherBytes(Bytes(comm.rank(), size * comm.rank()), &out));
    for (int rank = 0; rank < comm.world(); ++rank) {
      if (out[rank] != Bytes(rank, size * rank)) return Internal("other bytes of {}", rank);
    }
    return absl::OkStatus();
  }
  if (kind == 4) {
    const std::vector<int64_t> counts(static_cast<size_t>(comm.world()), size);
    std::vector<float> out(static_cast<size_t>(size * comm.world()));
    const std::vector<float> mine(static_cast<size_t>(size), static_cast<float>(comm.rank()));
    FACET_RETURN_IF_ERROR(comm.AllGather(mine, counts, out.data()));
    for (int64_t i = 0; i < size * comm.world(); ++i) {
      if (out[i] != static_cast<float>(i / size)) return Internal("another float {}", i);
    }
    return absl::OkStatus();
  }
  const int leaves = comm.world() + static_cast<int>((random >> 32) % 8);  // at most kLeavesMax
  const SumTree tree(leaves, EvenRanks(leaves, comm.world()));
  return CheckAllReduce(comm, tree, Inputs().Roots(tree, comm.rank(), size), size);
}

absl::Status RandomCalls(Communicator& comm, uint64_t seed, int calls) {
  uint64_t spin = 0;
  comm.SetTimeout(std::chrono::seconds(120));  // eight instrumented ranks may share two processors
  for (int call = 0; call < calls; ++call) {
    comm.SetStep(static_cast<uint64_t>(call) / 10);
    // Ranks drift apart by up to some microseconds, each in its own way.
    const uint64_t drift = Mix64(seed ^ static_cast<uint64_t>(comm.rank()), call) % 4'000;
    for (uint64_t i = 0; i < (drift < 400 ? drift * 10 : 0); ++i) spin = Mix64(spin);
    const absl::Status status = RandomCall(comm, Mix64(seed, call));
    if (!status.ok()) return Annotate(status, fmt::format("call {}, {}", call, spin % 2));
  }
  return absl::OkStatus();
}

// Fewer where ranks outnumber processors: each call is a wait for all of them.
TEST_P(Operations, RandomCallsStayRight) {
  const char* given = std::getenv("FACET_TEST_SEED");
  const uint64_t seed =
      given != nullptr
          ? std::strtoull(given, nullptr, 10)
          : static_cast<uint64_t>(::testing::UnitTest::GetInstance()->start_timestamp());
  std::printf("FACET_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  const int calls = backend().stress_calls / (world() <= 2 ? 1 : world());
  const auto work = [&](Communicator& comm) { return RandomCalls(comm, seed, calls); };
  EXPECT_ALL_OK(backend().Run(world(), work, SmallSlots()));
}

TEST_P(Operations, WaitingAndWorkingAreToldApart) {
  EXPECT_ALL_OK(backend().Run(world(), [](Communicator& comm) -> absl::Status {
    comm.TakeTimes();  // of what formed the group
    const auto begin = std::chrono::steady_clock::now();
    const SumTree tree(8, EvenRanks(8, comm.world()));
    constexpr int64_t kElements = 5'000;
    const std::vector<float> roots = Inputs().Roots(tree, comm.rank(), kElements);
    std::vector<float> out(kElements);
    FACET_RETURN_IF_ERROR(comm.AllReduceSum(tree, roots.data(), kElements, out.data()));
    FACET_RETURN_IF_ERROR(comm.Barrier());
    const std::chrono::duration<double> all = std::chrono::steady_clock::now() - begin;
    const Communicator::Times times = comm.TakeTimes();
    if (times.work_s <= 0 || times.wait_s < 0 || times.work_s + times.wait_s > all.count()) {
      return Internal("{} s working, {} s waiting, {} s in all", times.work_s, times.wait_s,
                      all.count());
    }
    const Communicator::Times after = comm.TakeTimes();
    if (after.work_s != 0 || after.wait_s != 0) return Internal("the look did not reset");
    return absl::OkStatus();
  }));
}

}  // namespace
}  // namespace facet
