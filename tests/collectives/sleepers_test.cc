// Ranks of one process that wait for long sleep, and wake.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "base/status.h"
#include "kernels/collectives/local.h"

namespace facet {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

constexpr milliseconds kLong(60'000);

// The scheduler's letter for a thread of this process: R runs, S sleeps.
char StateOf(pid_t thread) {
  std::ifstream file(fmt::format("/proc/self/task/{}/stat", thread));
  std::string text((std::istreambuf_iterator<char>(file)), {});
  const size_t after_name = text.rfind(')');
  return after_name == std::string::npos ? '?' : text[after_name + 2];
}

double CpuSecondsOfThisThread() {
  rusage usage = {};
  getrusage(RUSAGE_THREAD, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

TEST(Sleepers, AbortFromAnotherThreadWakesRanksThatSleep) {
  auto group = MakeLocalGroup(3);
  std::vector<std::thread> followers;
  std::vector<std::atomic<pid_t>> threads(3);
  std::vector<absl::Status> statuses(3);
  for (int rank = 1; rank < 3; ++rank) {
    followers.emplace_back([&, rank] {
      threads[rank] = static_cast<pid_t>(syscall(SYS_gettid));
      group[rank]->SetTimeout(kLong);
      std::vector<std::byte> message;
      statuses[rank] = group[rank]->Broadcast(&message);
    });
  }
  const Clock::time_point begin = Clock::now();
  for (int rank = 1; rank < 3; ++rank) {
    while (threads[rank] == 0 || StateOf(threads[rank]) != 'S') std::this_thread::yield();
  }
  group[0]->Abort();
  for (std::thread& follower : followers) follower.join();
  EXPECT_LT(Clock::now() - begin, kLong / 2);
  for (int rank = 1; rank < 3; ++rank) {
    EXPECT_EQ(MessageOf(statuses[rank]), "rank 0 aborted the group");
  }
}

TEST(Sleepers, AnIdleFollowerCostsNoProcessorTime) {
  auto group = MakeLocalGroup(2);
  group[1]->SetTimeout(milliseconds(300));
  std::vector<std::byte> message;
  const double before_s = CpuSecondsOfThisThread();
  const absl::Status status = group[1]->Broadcast(&message);
  EXPECT_LT(CpuSecondsOfThisThread() - before_s, 0.03);
  EXPECT_EQ(MessageOf(status),
            "rank 0 did not arrive at broadcast of step 0 within 300 ms (rank 1 waited)");
}

}  // namespace
}  // namespace facet
