// The emulator's side of kernels/cuda/driver.h.

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "kernels/cuda/driver.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/cuda_emulator/findings.h"
#include "tests/cuda_emulator/machine.h"
#include "tests/cuda_emulator/planted.h"
#include "tests/cuda_emulator/samples.h"
#include "tests/cuda_emulator/stream.h"
#include "tests/cuda_emulator/unwritten.h"

namespace facet::cuda {
namespace {

class DriverHost : public testing::Test {
 protected:
  void TearDown() override {
    cuda_emulator::SetDeviceMemory(int64_t{4} << 30);
    EXPECT_EQ(cuda_emulator::AllocatedBytes(), 0);
  }
};

TEST_F(DriverHost, WorkHappensInItsOrderAndByTheWaitAtTheLatest) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    cuda_emulator::SetStreamSeed(seed);
    const Stream stream = *MakeStream();
    constexpr int kCount = 100;
    auto* values = static_cast<int32_t*>(*Allocate(kCount * sizeof(int32_t)));
    auto* sum = static_cast<int32_t*>(*Allocate(sizeof(int32_t)));
    std::vector<int32_t> host(kCount);
    std::iota(host.begin(), host.end(), 1);
    int32_t result = 0;
    ASSERT_TRUE(CopyToDevice(values, host.data(), kCount * sizeof(int32_t), stream).ok());
    ASSERT_EQ(samples::BlockSums(stream, values, kCount, 1, 64, sum), 0);
    ASSERT_TRUE(CopyToHost(&result, sum, sizeof(result), stream).ok());
    ASSERT_TRUE(Wait(stream).ok());
    EXPECT_EQ(result, kCount * (kCount + 1) / 2);
    DestroyStream(stream);
    Free(sum);
    Free(values);
  }
}

// Some seed puts the copy off until the wait, so that reading too early shows.
TEST_F(DriverHost, ACopyMayBePutOff) {
  int early = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    cuda_emulator::SetStreamSeed(seed);
    const Stream stream = *MakeStream();
    const int32_t from = 7;
    int32_t to = 0;
    ASSERT_TRUE(CopyToHost(&to, &from, sizeof(to), stream).ok());
    early += to == 7 ? 1 : 0;
    ASSERT_TRUE(Wait(stream).ok());
    EXPECT_EQ(to, 7);
    DestroyStream(stream);
  }
  EXPECT_GT(early, 0);
  EXPECT_LT(early, 20);
}

TEST_F(DriverHost, AnEventWaitsForWhatWasBeforeIt) {
  const Stream stream = *MakeStream();
  const Event event = *MakeEvent();
  EXPECT_TRUE(Wait(event).ok());
  const int32_t from = 7;
  int32_t to = 0;
  ASSERT_TRUE(CopyToHost(&to, &from, sizeof(to), stream).ok());
  ASSERT_TRUE(Record(event, stream).ok());
  ASSERT_TRUE(Wait(event).ok());
  EXPECT_EQ(to, 7);
  DestroyEvent(event);
  DestroyStream(stream);
}

TEST_F(DriverHost, AFailedKernelStaysTheStreamsError) {
  const Stream stream = *MakeStream();
  cuda_emulator::FindingCollector collector;
  ASSERT_EQ(samples::BlockSums(stream, nullptr, 0, 1, 33, nullptr), 0);
  EXPECT_FALSE(Wait(stream).ok());
  EXPECT_EQ(collector.findings().size(), 1u);
  int32_t untouched = 3;
  ASSERT_TRUE(Fill(&untouched, 0, sizeof(untouched), stream).ok());
  EXPECT_FALSE(Wait(stream).ok());
  EXPECT_EQ(untouched, 3);
  DestroyStream(stream);
}

// Launches of a graph take their arguments from its capture, and the memory as it is.
TEST_F(DriverHost, AGraphKeepsItsArgumentsAndReadsTheMemoryAsItIs) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(seed);
    cuda_emulator::SetStreamSeed(seed);
    const Stream stream = *MakeStream();
    std::vector<int32_t> values = {1, 2, 3};
    int32_t sum = -1;
    int32_t* out = &sum;
    ASSERT_TRUE(BeginCapture(stream).ok());
    ASSERT_EQ(samples::BlockSums(stream, values.data(), 3, 1, 32, out), 0);
    out = nullptr;
    const Graph graph = *EndCapture(stream);
    ASSERT_TRUE(Wait(stream).ok());
    EXPECT_EQ(sum, -1);  // captured, not run
    const int64_t before = cuda_emulator::GraphLaunches();
    for (int round = 0; round < 3; ++round) {
      values[0] = round;
      ASSERT_TRUE(LaunchGraph(graph, stream).ok());
      ASSERT_TRUE(Wait(stream).ok());
      EXPECT_EQ(sum, round + 5);
    }
    EXPECT_EQ(cuda_emulator::GraphLaunches(), before + 3);
    ASSERT_TRUE(LaunchGraph(graph, stream).ok());
    sum = -1;
    DestroyGraph(graph);  // maybe before its last launch
    ASSERT_TRUE(Wait(stream).ok());
    DestroyStream(stream);
  }
}

TEST_F(DriverHost, ACaptureRefusesWhatIsNoKernel) {
  const Stream stream = *MakeStream();
  const Event event = *MakeEvent();
  int32_t from = 7, to = 0;
  ASSERT_TRUE(BeginCapture(stream).ok());
  EXPECT_FALSE(CopyToHost(&to, &from, sizeof(to), stream).ok());
  EXPECT_FALSE(Fill(&to, 0, sizeof(to), stream).ok());
  EXPECT_FALSE(Record(event, stream).ok());
  EXPECT_FALSE(Wait(stream).ok());
  EXPECT_FALSE(BeginCapture(stream).ok());
  DestroyGraph(*EndCapture(stream));
  EXPECT_TRUE(Wait(stream).ok());
  DestroyEvent(event);
  DestroyStream(stream);
}

TEST_F(DriverHost, AGraphTakesMemory) {
  const Stream stream = *MakeStream();
  int32_t value = 1, sum = 0;
  cuda_emulator::SetDeviceMemory(cuda_emulator::kGraphBytesPerKernel);
  const auto capture = [&](int kernels) {
    EXPECT_TRUE(BeginCapture(stream).ok());
    for (int i = 0; i < kernels; ++i) samples::BlockSums(stream, &value, 1, 1, 32, &sum);
    return EndCapture(stream);
  };
  EXPECT_EQ(capture(2).status().code(), absl::StatusCode::kResourceExhausted);
  const auto graph = capture(1);
  ASSERT_TRUE(graph.ok()) << graph.status();
  EXPECT_EQ(*FreeMemory(), 0);
  DestroyGraph(*graph);
  DestroyStream(stream);
}

TEST_F(DriverHost, MemoryIsFinite) {
  cuda_emulator::SetDeviceMemory(1000);
  EXPECT_EQ(*FreeMemory(), 1000);
  void* piece = *Allocate(600);
  EXPECT_EQ(*FreeMemory(), 400);
  EXPECT_EQ(Allocate(401).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(UseDevice(1).ok());
  EXPECT_EQ(*FreeMemory(), 1000);
  ASSERT_TRUE(UseDevice(0).ok());
  Free(piece);
  EXPECT_FALSE(UseDevice(cuda_emulator::kDevices).ok());
}

TEST_F(DriverHost, AskingForAnEventDoesWhatIsReadyAndWaitsForNobody) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    cuda_emulator::SetStreamSeed(seed);
    const Stream stream = *MakeStream();
    const Event event = *MakeEvent();
    EXPECT_TRUE(*Passed(event));  // was never recorded
    bool ready = false;
    int done = 0;
    stream->Put(cuda_emulator::Piece{[&ready] { return ready; }, [&done] { return ++done, 0; }});
    stream->Put([&done] { return ++done, 0; });
    ASSERT_TRUE(Record(event, stream).ok());
    EXPECT_FALSE(*Passed(event));
    EXPECT_EQ(done, 0);  // what comes after waits, too
    ready = true;
    EXPECT_TRUE(*Passed(event));
    EXPECT_EQ(done, 2);
    DestroyEvent(event);
    DestroyStream(stream);
  }
}

TEST_F(DriverHost, KnowsItsMemory) {
  auto* const piece = static_cast<std::byte*>(*Allocate(100));
  EXPECT_TRUE(cuda_emulator::InDeviceMemory(piece, 100));
  EXPECT_TRUE(cuda_emulator::InDeviceMemory(piece + 99, 1));
  EXPECT_FALSE(cuda_emulator::InDeviceMemory(piece + 1, 100));
  EXPECT_FALSE(cuda_emulator::InDeviceMemory(&piece, 1));
  Free(piece);
}

// At the write with the address sanitizer, else when the memory is given back.
TEST(DriverHostDeathTest, AKernelsWriteBeyondAnAllocationIsNoticed) {
  EXPECT_DEATH(
      {
        const std::vector<int32_t> values(2);
        auto* out = static_cast<int32_t*>(*Allocate(sizeof(int32_t)));
        samples::BlockSums(nullptr, values.data(), 1, 2, 32, out);
        Free(out);
      },
      "wrote beyond an allocation of 4 bytes|use-after-poison");
}

TEST(FirstUnwritten, IsWhatNoRunTouches) {
  std::vector<std::byte> out(5);
  const auto write_but = [&](size_t skipped) {
    for (size_t i = 0; i < out.size(); ++i) {
      if (i != skipped) out[i] = std::byte{0xff};  // also one of the patterns
    }
  };
  EXPECT_EQ(cuda_emulator::FirstUnwritten(out, [&] { write_but(3); }), 3);
  EXPECT_EQ(cuda_emulator::FirstUnwritten(out, [&] { write_but(5); }), -1);
}

}  // namespace
}  // namespace facet::cuda
