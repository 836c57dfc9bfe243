// Microseconds per all-reduce between processes, each pinned to a processor: over shared memory,
// and over TCP on loopback.
//   collectives_bench [ranks = 2] [slot KiB = default, of shared memory]
// Prints the median over batches, and how long one copy of the same floats takes for scale.

#include <sched.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/status.h"
#include "kernels/collectives/shm.h"
#include "kernels/collectives/tcp.h"
#include "kernels/sum_tree.h"

namespace facet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLeaves = 16;
// Short ones: on a busy host most of them fall between the time slices of others.
constexpr int kBatches = 301;
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
  const int repeats = static_cast<int>(std::clamp<int64_t>(400'000 / (elements + 2'000), 2, 50));
  std::vector<double> batches;
  for (int batch = 0; batch < kBatches; ++batch) {
    const Clock::time_point begin = Clock::now();
    for (int i = 0; i < repeats; ++i) body();
    batches.push_back(MicrosecondsSince(begin) / repeats);
  }
  return Median(batches);
}

void Measure(Communicator& comm, const char* backend) {
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
        "%s: all-reduce of %7lld floats over %d ranks: %8.2f us (waiting %2.0f %%), copy %8.2f "
        "us\n",
        backend, static_cast<long long>(elements), comm.world(), reduce_us,
        100 * times.wait_s / (times.wait_s + times.work_s), copy_us);
  }
}

using Join = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(int rank)>;

// Every rank a process of its own, rank 0 this one.
void MeasureGroup(const char* backend, int world, const Join& join) {
  std::fflush(stdout);
  for (int rank = 1; rank < world; ++rank) {
    if (fork() != 0) continue;
    PinTo(rank % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
    auto comm = join(rank);
    FACET_CHECK(comm.ok(), "{}", MessageOf(comm.status()));
    Measure(**comm, backend);
    _exit(0);
  }
  PinTo(0);
  auto comm = join(0);
  FACET_CHECK(comm.ok(), "{}", MessageOf(comm.status()));
  Measure(**comm, backend);
  while (wait(nullptr) > 0) {
  }
}

void MeasureShm(int world, const ShmOptions& options) {
  const std::string name = fmt::format("bench-{}", getpid());
  MeasureGroup("shm", world, [&](int rank) {
    return rank == 0 ? CreateShmGroup(name, world, options)
                     : AttachShmGroup(name, rank, world, options);
  });
}

void MeasureTcp(int world) {
  TcpGroup group;
  group.world = world;
  std::vector<TcpListener> listeners;
  for (int rank = 0; rank < world; ++rank) {
    auto listener = TcpListener::Bind("127.0.0.1:0");
    FACET_CHECK(listener.ok(), "{}", MessageOf(listener.status()));
    group.addresses.push_back(fmt::format("127.0.0.1:{}", listener->port()));
    listeners.push_back(*std::move(listener));
  }
  MeasureGroup("tcp", world, [&](int rank) {
    group.rank = rank;
    return JoinTcpGroup(std::move(listeners[rank]), group, TcpOptions());
  });
}

int Main(int argc, char** argv) {
  const int world = argc > 1 ? std::atoi(argv[1]) : 2;
  ShmOptions options;
  if (argc > 2) options.arena.slot_bytes = static_cast<size_t>(std::atoi(argv[2])) << 10;
  MeasureShm(world, options);
  MeasureTcp(world);
  return 0;
}

}  // namespace
}  // namespace facet

int main(int argc, char** argv) { return facet::Main(argc, argv); }
