// Which launches are replayed, over the emulator's driver.

#include "kernels/cuda/launch_queue.h"

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "base/status.h"
#include "kernels/cuda/nccl_link.h"
#include "tests/cuda_emulator/driver_host.h"

namespace facet::cuda {
namespace {

constexpr int kWidth = 4;
constexpr int kRows = 8;
constexpr int kCalls = 4;  // of a sequence

class LaunchQueueTest : public testing::Test {
 protected:
  LaunchQueueTest() : memory_("test"), stream_(*MakeStream()) {
    table_ = static_cast<float*>(*memory_.Allocate("table", kRows * kWidth * sizeof(float)));
    std::iota(table_, table_ + kRows * kWidth, 0.0f);
    rows_ = static_cast<int32_t*>(*memory_.Allocate("rows", kCalls * sizeof(int32_t)));
    std::fill_n(rows_, kCalls, 0);
    for (float*& out : outs_) {
      out = static_cast<float*>(*memory_.Allocate("out", kCalls * kWidth * sizeof(float)));
    }
    made_ = cuda_emulator::GraphsMade();
    launches_ = cuda_emulator::GraphLaunches();
  }
  ~LaunchQueueTest() override {
    queue_.reset();
    Wait(stream_).IgnoreError();
    DestroyStream(stream_);
    cuda_emulator::SetDeviceMemory(int64_t{4} << 30);
  }

  void Start(const LaunchQueue::Options& options) {
    queue_ = std::make_unique<LaunchQueue>();
    ASSERT_TRUE(queue_->Init(options, &memory_, stream_).ok());
    queue_->Defer(true);
  }
  // out[i] = table[rows_[i]], one kernel per row.
  void Gather(float* out, int calls = kCalls) {
    for (int i = 0; i < calls; ++i) {
      queue_->Put<&GatherRows>("a gather", table_, rows_ + i, 1, kWidth, out + i * kWidth);
    }
    queue_->Flush();
    ASSERT_TRUE(Wait(stream_).ok());
  }
  void ExpectGathered(const float* out) const {
    for (int i = 0; i < kCalls * kWidth; ++i) {
      EXPECT_EQ(out[i], table_[rows_[i / kWidth] * kWidth + i % kWidth]) << i;
    }
  }
  int64_t made() const { return cuda_emulator::GraphsMade() - made_; }
  int64_t replayed() const { return cuda_emulator::GraphLaunches() - launches_; }

  DeviceMemory memory_;
  const Stream stream_;
  std::unique_ptr<LaunchQueue> queue_;
  float* table_ = nullptr;
  int32_t* rows_ = nullptr;
  std::array<float*, 20> outs_{};

 private:
  int64_t made_ = 0;
  int64_t launches_ = 0;
};

TEST_F(LaunchQueueTest, ASequenceIsReplayedFromTheSecondTimeOnAndReadsTheMemoryAsItIs) {
  Start({.calls_max = 100});
  for (int round = 0; round < 6; ++round) {
    for (int i = 0; i < kCalls; ++i) rows_[i] = (round + 3 * i) % kRows;
    Gather(outs_[0]);
    ExpectGathered(outs_[0]);
    EXPECT_EQ(made(), round > 0 ? 1 : 0);
    EXPECT_EQ(replayed(), round);
  }
}

TEST_F(LaunchQueueTest, KernelsWaitForTheFlush) {
  Start({.calls_max = 100});
  std::fill_n(outs_[0], kWidth, -1.0f);
  queue_->Put<&GatherRows>("a gather", table_, rows_, 1, kWidth, outs_[0]);
  ASSERT_TRUE(Wait(stream_).ok());
  EXPECT_EQ(outs_[0][0], -1.0f);
  queue_->Flush();
  ASSERT_TRUE(Wait(stream_).ok());
  EXPECT_EQ(outs_[0][0], 0.0f);
}

TEST_F(LaunchQueueTest, NothingWaitsUntilItIsAskedTo) {
  Start({.calls_max = 100});
  queue_->Defer(false);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < kCalls; ++i) {
      queue_->Put<&GatherRows>("a gather", table_, rows_ + i, 1, kWidth, outs_[0] + i * kWidth);
    }
    ASSERT_TRUE(Wait(stream_).ok());
    ExpectGathered(outs_[0]);
  }
  EXPECT_EQ(made(), 0);
}

// A graph of the old argument would write to the old place.
TEST_F(LaunchQueueTest, ASequenceWithAnotherArgumentIsAnother) {
  Start({.calls_max = 100});
  for (int round = 0; round < 3; ++round) Gather(outs_[0]);
  ASSERT_EQ(replayed(), 2);
  for (int other = 1; other < 4; ++other) {
    std::fill_n(outs_[0], kCalls * kWidth, -1.0f);
    std::fill_n(rows_, kCalls, other);
    Gather(outs_[other]);
    ExpectGathered(outs_[other]);
    EXPECT_EQ(outs_[0][0], -1.0f);
    EXPECT_EQ(replayed(), 2);
  }
  Gather(outs_[0]);
  ExpectGathered(outs_[0]);
  EXPECT_EQ(replayed(), 3);
}

// Two sequences of the same hash take turns; a graph of the other epsilon would give its numbers.
TEST_F(LaunchQueueTest, ArgumentsThatTheHashLeavesOutCount) {
  Start({.calls_max = 100});
  const auto norm = [&](float epsilon, float* out) {
    for (int i = 0; i < kCalls; ++i) {
      queue_->Put<&RmsNorm>("a norm", table_, 1, kWidth, table_, epsilon, out + i * kWidth);
    }
    queue_->Flush();
    ASSERT_TRUE(Wait(stream_).ok());
  };
  const std::array<float, 2> epsilons = {1e-6f, 1.0f};
  queue_->Defer(false);
  for (int i = 0; i < 2; ++i) norm(epsilons[i], outs_[1 + i]);
  queue_->Defer(true);
  ASSERT_NE(outs_[1][1], outs_[2][1]);
  for (const int turn : {0, 0, 0, 1, 1, 0, 1, 0, 0}) {
    norm(epsilons[turn], outs_[0]);
    for (int i = 0; i < kCalls * kWidth; ++i) EXPECT_EQ(outs_[0][i], outs_[1 + turn][i]);
  }
  EXPECT_EQ(replayed(), 4);
}

// Every field of an argument is compared, also those that the queue's hash leaves out.
TEST_F(LaunchQueueTest, EveryFieldCounts) {
  AttentionPass pass;
  const auto same = [&](const AttentionPass& other) {
    KernelCall a, b;
    a.call = Call<&Attend>{{AttentionLayer(), RowPlaces(), pass}};
    b.call = Call<&Attend>{{AttentionLayer(), RowPlaces(), other}};
    return a == b;
  };
  AttentionPass other = pass;
  EXPECT_TRUE(same(other));
  other.first_split = 1;
  EXPECT_FALSE(same(other));
  other = pass;
  other.last = !other.last;
  EXPECT_FALSE(same(other));
  other = pass;
  other.totals = outs_[0];
  EXPECT_FALSE(same(other));

  AttentionLayer layer, changed;
  changed.kv_of_head[kHeadsMax - 1] = 1;
  EXPECT_FALSE(layer == changed);
  changed = layer;
  changed.pool.half = false;
  EXPECT_FALSE(layer == changed);
}

TEST_F(LaunchQueueTest, AFewKernelsAreNotWorthAGraph) {
  Start({.calls_max = 100});
  for (int round = 0; round < 4; ++round) Gather(outs_[0], kCalls - 1);
  EXPECT_EQ(made(), 0);
}

TEST_F(LaunchQueueTest, ItRemembersSoManyCallsAndNoMore) {
  constexpr int64_t kRemembered = 3;
  Start({.calls_max = kRemembered * kCalls});
  const int64_t before = cuda_emulator::AllocatedBytes();
  for (int round = 0; round < 4; ++round) {
    for (float* out : outs_) {
      for (int again = 0; again < 2; ++again) {
        std::fill_n(rows_, kCalls, (round + again) % kRows);
        Gather(out);
        ExpectGathered(out);
        EXPECT_LE(cuda_emulator::AllocatedBytes() - before,
                  kRemembered * kCalls * cuda_emulator::kGraphBytesPerKernel);
      }
    }
  }
  EXPECT_EQ(made(), 4 * static_cast<int64_t>(outs_.size()));  // each had been forgotten
}

TEST_F(LaunchQueueTest, TheLastUsedAreRemembered) {
  Start({.calls_max = 2 * kCalls});
  for (int round = 0; round < 4; ++round) {
    Gather(outs_[0]);
    Gather(outs_[1 + round]);
  }
  EXPECT_EQ(made(), 1);
  EXPECT_EQ(replayed(), 3);
}

TEST_F(LaunchQueueTest, WithoutMemoryForAGraphEachKernelIsLaunched) {
  Start({.calls_max = 100});
  cuda_emulator::SetDeviceMemory(cuda_emulator::AllocatedBytes() +
                                 kCalls * cuda_emulator::kGraphBytesPerKernel - 1);
  for (int round = 0; round < 4; ++round) {
    std::fill_n(rows_, kCalls, round);
    Gather(outs_[0]);
    ExpectGathered(outs_[0]);
  }
  EXPECT_EQ(made(), 0);
}

TEST_F(LaunchQueueTest, WhatIsHeldBackIsThereForGraphs) {
  cuda_emulator::SetDeviceMemory(cuda_emulator::AllocatedBytes() +
                                 kCalls * cuda_emulator::kGraphBytesPerKernel);
  Start({.calls_max = 100, .bytes = kCalls * cuda_emulator::kGraphBytesPerKernel});
  EXPECT_FALSE(memory_.Allocate("anything else", 1).ok());
  for (int round = 0; round < 3; ++round) Gather(outs_[0]);
  EXPECT_EQ(replayed(), 2);
}

// Lets sequences pass as long as it is told to.
class CountingGuard final : public StreamGuard {
 public:
  absl::Status Enter() override {
    ++entered;
    return refuse ? Internal("refused") : absl::OkStatus();
  }
  void Entered(bool whole) override { on_stream += whole ? 1 : 0; }
  absl::Status Await(const std::function<bool()>& done) override {
    while (!done()) continue;
    return absl::OkStatus();
  }
  absl::Status failure() const override { return absl::OkStatus(); }

  bool refuse = false;
  int entered = 0;
  int on_stream = 0;
};

class LaunchQueueOfExchanges : public LaunchQueueTest {
 protected:
  LaunchQueueOfExchanges() : link_(nullptr, nullptr, {}) {
    Start({.calls_max = 100});
    queue_->SetGuard(&guard_);
  }
  // As Gather(), with an exchange, of nothing, among the kernels.
  void GatherAndExchange(float* out) {
    queue_->Put<&RunTransfers>("an exchange", Transfers{&link_, {}});
    Gather(out);
  }

  CountingGuard guard_;
  NcclLink link_;
};

TEST_F(LaunchQueueOfExchanges, TheGuardIsAskedOnceForEverySequenceThatHasSome) {
  for (int round = 1; round < 5; ++round) {
    GatherAndExchange(outs_[0]);
    ExpectGathered(outs_[0]);
    Gather(outs_[1]);
    EXPECT_EQ(guard_.entered, round);
    EXPECT_EQ(guard_.on_stream, round);
  }
  EXPECT_EQ(made(), 2);
}

TEST_F(LaunchQueueOfExchanges, WhatTheGuardRefusesNeverGetsToTheStream) {
  for (int round = 0; round < 3; ++round) GatherAndExchange(outs_[0]);
  const int64_t launches = replayed();
  guard_.refuse = true;
  for (float* const out : {outs_[0], outs_[1]}) {  // one that has a graph, and another
    std::fill_n(out, kCalls * kWidth, -1.0f);
    GatherAndExchange(out);
    for (int i = 0; i < kCalls * kWidth; ++i) EXPECT_EQ(out[i], -1.0f);
  }
  EXPECT_EQ(replayed(), launches);
  EXPECT_EQ(guard_.on_stream, 3);
}

TEST_F(LaunchQueueOfExchanges, GraphsOfALinkAreForgottenAndNoOthers) {
  const int64_t before = cuda_emulator::AllocatedBytes();
  for (int round = 0; round < 2; ++round) {
    GatherAndExchange(outs_[0]);
    Gather(outs_[1]);
  }
  ASSERT_EQ(made(), 2);
  queue_->Put<&RunTransfers>("an exchange", Transfers{&link_, {}});
  queue_->Forget(&link_);
  EXPECT_EQ(cuda_emulator::AllocatedBytes() - before, kCalls * cuda_emulator::kGraphBytesPerKernel);
  Gather(outs_[1]);
  EXPECT_EQ(guard_.entered, 2) << "what waited is still there";
  EXPECT_EQ(replayed(), 3);
  GatherAndExchange(outs_[0]);  // as if for the first time
  EXPECT_EQ(replayed(), 3);
}

}  // namespace
}  // namespace facet::cuda
