// Microseconds per all-reduce between processes over shared memory, each pinned to a processor.
//   collectives_bench [ranks = 2] [slot KiB = default]
// Prints the median over batches, and how long one copy of the same floats takes for scale.

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/shm.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLeaves = 16;
constexpr int kBatches = 31;
constexpr int64_t kElements[] = {1, 640, 5'120, 65'536, 327'680};

void PinTo(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  FACET_CHECK(sched_setaffinity(0, sizeof(set), &set) == 0);
}

double MicrosecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

template <typename Body>
double MedianMicroseconds(int64_t elements, const Body& body) {
  const int repeats = static_cast<int>(std::clamp<int64_t>(4'000'000 / (elements + 2'000), 4, 500));
  std::vector<double> batches;
  for (int batch = 0; batch < kBatches; ++batch) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < repeats; ++i) body();
    batches.push_back(MicrosecondsSince(begin) / repeats);
  }
  return Median(batches);
}

void Measure(Communicator& comm) {
  std::vector<int> rank_begin;
  for (int rank = 0; rank <= comm.world(); ++rank) {
    rank_begin.push_back(kLeaves * rank / comm.world());
  }
  const SumTree tree(kLeaves, rank_begin);
  for (const int64_t elements : kElements) {
    std::vector<float> roots(static_cast<size_t>(elements * tree.root_count(comm.rank())), 1);
    std::vector<float> out(static_cast<size_t>(elements));
    const double reduce_us = MedianMicroseconds(elements, [&] {
      const absl::Status status = comm.AllReduceSum(tree, roots.data(), elements, out.data());
      FACET_CHECK(status.ok(), "{}", MessageOf(status));
    });
    const Communicator::Times times = comm.TakeTimes();
    const double copy_us = MedianMicroseconds(elements, [&] {
      std::memcpy(out.data(), roots.data(), static_cast<size_t>(elements) * sizeof(float));
      asm volatile("" ::: "memory");
    });
    if (comm.rank() != 0) continue;
    std::printf(
        "all-reduce of %7lld floats over %d ranks: %8.2f us (waiting %2.0f %%), copy %8.2f us\n",
        static_cast<long long>(elements), comm.world(), reduce_us,
        100 * times.wait_s / (times.wait_s + times.work_s), copy_us);
  }
}

int Main(int argc, char** argv) {
  const int world = argc > 1 ? std::atoi(argv[1]) : 2;
  ShmOptions options;
  if (argc > 2) options.arena.slot_bytes = static_cast<size_t>(std::atoi(argv[2])) << 10;
  const std::string name = fmt::format("bench-{}", getpid());
  for (int rank = 1; rank < world; ++rank) {
    if (fork() != 0) continue;
    PinTo(rank % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
    auto comm = AttachShmGroup(name, rank, world, options);
    FACET_CHECK(comm.ok(), "{}", MessageOf(comm.status()));
    Measure(**comm);
    _exit(0);
  }
  PinTo(0);
  auto comm = CreateShmGroup(name, world, options);
  FACET_CHECK(comm.ok(), "{}", MessageOf(comm.status()));
  Measure(**comm);
  while (wait(nullptr) > 0) {
  }
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
