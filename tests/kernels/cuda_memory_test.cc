// What the CUDA device does with its memory, over the emulator's driver.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/status.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_memory.h"
#include "tests/cuda_emulator/driver_host.h"
#include "tests/kernels/test_data.h"

namespace facet::cuda {
namespace {

using ::testing::HasSubstr;

class CudaMemory : public testing::Test {
 protected:
  ~CudaMemory() override {
    cuda_emulator::SetDeviceMemory(int64_t{4} << 30);
    cuda_emulator::SetPinnedMemory(int64_t{1} << 30);
  }
};

TEST_F(CudaMemory, ADeviceWithoutRoomSaysWhatNeedsHowMuch) {
  cuda_emulator::SetDeviceMemory(int64_t{32} << 20);
  const auto device = MakeCudaDevice({});
  ASSERT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(device.status()), HasSubstr("work spaces need 0.06 GiB"));
}

TEST_F(CudaMemory, WeightsTakeTheFilesBytesAndTheSecondBlockOfEveryPair) {
  auto device = MakeCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  Random random(1);
  constexpr int kRows = 5;
  const auto blocks_of_a_row = [&](TensorType type, int blocks) {
    const BlockFormat& format = FormatOf(type);
    const TestMatrix matrix = MakeMatrix(type, kRows, blocks * format.elements, 0.1f, random);
    return (*(*device)->LoadMatrix(matrix.source(), nullptr))->packed_bytes() /
           (kRows * format.bytes);
  };
  for (const TensorType type :
       {TensorType::kQ4_0, TensorType::kQ5_0, TensorType::kQ8_0, TensorType::kQ6_K}) {
    EXPECT_EQ(blocks_of_a_row(type, 1), 2);
    EXPECT_EQ(blocks_of_a_row(type, 3), 4);
    EXPECT_EQ(blocks_of_a_row(type, 6), 6);
  }
  for (const TensorType type :
       {TensorType::kQ4_1, TensorType::kQ5_1, TensorType::kQ4_K, TensorType::kQ5_K}) {
    EXPECT_EQ(blocks_of_a_row(type, 3), 3);
  }
}

TEST_F(CudaMemory, WeightsThatDoNotFitAreRefusedWithWhatTookTheRest) {
  cuda_emulator::SetDeviceMemory(int64_t{144} << 20);
  auto device = MakeCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  Random random(1);
  const TestMatrix matrix = MakeMatrix(TensorType::kF32, 4096, 1024, 0.1f, random);
  const auto loaded = (*device)->LoadMatrix(matrix.source(), nullptr);
  ASSERT_EQ(loaded.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(loaded.status()), HasSubstr("weights need 0.02 GiB"));
  EXPECT_THAT(MessageOf(loaded.status()), HasSubstr("work spaces take 0.07 GiB"));
  EXPECT_THAT(MessageOf(loaded.status()), HasSubstr("graphs take 0.06 GiB"));
}

TEST_F(CudaMemory, KeysAndValuesThatDoNotFitAreRefused) {
  cuda_emulator::SetDeviceMemory(int64_t{144} << 20);
  auto device = MakeCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  KvPoolSpec pool = {4, 1024, 32, 4, 128, KvType::kF16};
  const absl::Status status = (*device)->AllocateKv({pool, {}});
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("keys and values need 0.25 GiB"));
}

// One sentence has all that a start allocates, whichever comes last.
TEST_F(CudaMemory, WhatDoesNotFitIsToldBesideAllThatDoes) {
  cuda_emulator::SetDeviceMemory(int64_t{256} << 20);
  CudaDeviceOptions options;
  options.rows = 32768;  // 16 MiB of rotations
  auto device = MakeCudaDevice(options);
  ASSERT_TRUE(device.ok()) << device.status();
  Random random(1);
  const TestMatrix matrix = MakeMatrix(TensorType::kF32, 4096, 1024, 0.1f, random);
  const auto loaded = (*device)->LoadMatrix(matrix.source(), nullptr);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_TRUE((*device)->AllocateFloats(int64_t{8} << 20).ok());
  (*device)->AddRope({std::vector<float>(64, 0.5f)});
  ASSERT_TRUE((*device)->AllocateKv({KvPoolSpec{4, 127, 32, 4, 128, KvType::kF16}, {}}).ok());
  const auto more = (*device)->AllocateFloats(int64_t{64} << 20);
  ASSERT_EQ(more.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MessageOf(more.status()),
            "cuda:0 (emulated, sm_80): activations need 0.25 GiB, of which 0.02 GiB are free; "
            "activations take 0.03 GiB, graphs take 0.06 GiB, keys and values take 0.03 GiB, "
            "step tables take 0.02 GiB, weights take 0.02 GiB, work spaces take 0.07 GiB");
}

// The tables' size is only known with the last of what they hold.
TEST_F(CudaMemory, StepTablesThatDoNotFitAreRefusedBeforeTheFirstStep) {
  cuda_emulator::SetDeviceMemory(int64_t{144} << 20);
  CudaDeviceOptions options;
  options.rows = 16384;
  auto device = MakeCudaDevice(options);
  ASSERT_TRUE(device.ok()) << device.status();
  (*device)->AddRope({std::vector<float>(128, 0.5f)});
  const absl::Status status = (*device)->AllocateKv({});
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("step tables need 0.02 GiB"));
}

TEST_F(CudaMemory, StagingThatTheHostDoesNotGiveIsRefused) {
  cuda_emulator::SetPinnedMemory(int64_t{10} << 20);
  const auto device = MakeCudaDevice({});
  ASSERT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(device.status()),
              HasSubstr("work spaces need 0.02 GiB of pinned host memory"));
}

TEST_F(CudaMemory, GraphsHaveTheirShareFromTheStart) {
  cuda_emulator::SetDeviceMemory(int64_t{100} << 20);
  const auto device = MakeCudaDevice({});
  ASSERT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(device.status()), HasSubstr("graphs need 0.06 GiB"));
}

TEST_F(CudaMemory, NothingStaysWhenTheDeviceGoes) {
  const int64_t before = cuda_emulator::AllocatedBytes();
  {
    auto device = MakeCudaDevice({});
    ASSERT_TRUE(device.ok()) << device.status();
    ASSERT_TRUE((*device)->AllocateKv({KvPoolSpec{1, 4, 16, 1, 64, KvType::kF16}, {}}).ok());
    (*device)->AddRope({std::vector<float>(32, 0.5f)});
    EXPECT_GT(cuda_emulator::AllocatedBytes(), before);
  }
  EXPECT_EQ(cuda_emulator::AllocatedBytes(), before);
}

// What was put reaches the device, at the same addresses after every restart, and what is on its
// way is not overwritten.
TEST_F(CudaMemory, AnUploadAreaStartsAgain) {
  DeviceMemory memory("test");
  for (uint64_t seed = 0; seed < 10; ++seed) {
    cuda_emulator::SetStreamSeed(seed);
    const Stream stream = *MakeStream();
    {
      StreamWait wait;
      ASSERT_TRUE(wait.Init(stream).ok());
      UploadArea area;
      ASSERT_TRUE(area.Create("arguments", 256, &memory, &wait).ok());
      constexpr int kRounds = 20;
      std::vector<int32_t> got_ids(5 * kRounds);
      std::vector<float> got_values(5 * kRounds);
      const int32_t* first_address = nullptr;
      const float* second_address = nullptr;
      for (int round = 0; round < kRounds; ++round) {
        std::vector<int32_t> first(5);
        std::iota(first.begin(), first.end(), 100 * round);
        const std::vector<float> second(5, static_cast<float>(round));
        area.Restart();
        const int32_t* const ids = area.Put(std::span<const int32_t>(first));
        area.Flush();
        const float* const values = area.Put(std::span<const float>(second));
        area.Flush();
        if (round == 0) {
          first_address = ids;
          second_address = values;
        }
        ASSERT_EQ(ids, first_address);
        ASSERT_EQ(values, second_address);
        ASSERT_TRUE(CopyToHost(&got_ids[5 * round], ids, 20, stream).ok());
        ASSERT_TRUE(CopyToHost(&got_values[5 * round], values, 20, stream).ok());
      }
      ASSERT_TRUE(Wait(stream).ok());
      for (int i = 0; i < 5 * kRounds; ++i) {
        ASSERT_EQ(got_ids[i], 100 * (i / 5) + i % 5);
        ASSERT_EQ(got_values[i], static_cast<float>(i / 5));
      }
    }
    DestroyStream(stream);
  }
}

}  // namespace
}  // namespace facet::cuda
