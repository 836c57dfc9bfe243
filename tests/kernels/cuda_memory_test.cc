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
  ~CudaMemory() override { cuda_emulator::SetDeviceMemory(int64_t{4} << 30); }
};

TEST_F(CudaMemory, ADeviceWithoutRoomSaysWhatNeedsHowMuch) {
  cuda_emulator::SetDeviceMemory(int64_t{32} << 20);
  const auto device = MakeCudaDevice({});
  ASSERT_EQ(device.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(device.status()), HasSubstr("work spaces need 0.06 GiB"));
}

TEST_F(CudaMemory, WeightsThatDoNotFitAreRefusedWithWhatTookTheRest) {
  cuda_emulator::SetDeviceMemory(int64_t{80} << 20);
  auto device = MakeCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  Random random(1);
  const TestMatrix matrix = MakeMatrix(TensorType::kF32, 4096, 1024, 0.1f, random);
  const auto loaded = (*device)->LoadMatrix(matrix.source(), nullptr);
  ASSERT_EQ(loaded.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(loaded.status()), HasSubstr("weights need 0.02 GiB"));
  EXPECT_THAT(MessageOf(loaded.status()), HasSubstr("work spaces take 0.07 GiB"));
}

TEST_F(CudaMemory, KeysAndValuesThatDoNotFitAreRefused) {
  cuda_emulator::SetDeviceMemory(int64_t{80} << 20);
  auto device = MakeCudaDevice({});
  ASSERT_TRUE(device.ok()) << device.status();
  KvPoolSpec pool = {4, 1024, 32, 4, 128, KvType::kF16};
  const absl::Status status = (*device)->AllocateKv({pool, {}});
  ASSERT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(MessageOf(status), HasSubstr("keys and values need 0.25 GiB"));
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

// What was put reaches the device, also when the ring comes around many times.
TEST_F(CudaMemory, AnUploadRingComesAround) {
  DeviceMemory memory("test");
  const Stream stream = *MakeStream();
  {
    UploadRing ring;
    ASSERT_TRUE(ring.Create("arguments", 256, &memory, stream).ok());
    for (int round = 0; round < 50; ++round) {
      std::vector<int32_t> first(static_cast<size_t>(1 + round % 9));
      std::iota(first.begin(), first.end(), 100 * round);
      const std::vector<float> second(5, static_cast<float>(round));
      const auto bytes = static_cast<int64_t>(first.size() * 4);
      ring.Reserve(UploadRing::Padded(bytes) + UploadRing::Padded(20));
      const int32_t* const ids = ring.Put(std::span<const int32_t>(first));
      const float* const values = ring.Put(std::span<const float>(second));
      ring.Flush();
      std::vector<int32_t> got_ids(first.size());
      std::vector<float> got_values(second.size());
      ASSERT_TRUE(CopyToHost(got_ids.data(), ids, bytes, stream).ok());
      ASSERT_TRUE(CopyToHost(got_values.data(), values, 20, stream).ok());
      ASSERT_TRUE(Wait(stream).ok());
      ASSERT_EQ(got_ids, first) << round;
      ASSERT_EQ(got_values, second) << round;
    }
  }
  DestroyStream(stream);
}

}  // namespace
}  // namespace facet::cuda
