// The declarations by hand of shard_worker/energy/nvml.h are those of NVIDIA's header.

#include <gtest/gtest.h>
#include <nvml.h>

#include <cstddef>
#include <tuple>
#include <type_traits>

#include "shard_worker/energy/nvml.h"

namespace facet {
namespace {

template <typename T>
using Plain = std::conditional_t<std::is_enum_v<T>, int, T>;

// A function's type as Facet has it: enumerations as int, NvmlMemory for nvmlMemory_t.
template <typename Result, typename... Args>
auto AsOurs(Result (*)(Args...)) -> Plain<Result> (*)(
    std::conditional_t<std::is_same_v<Args, nvmlMemory_t*>, NvmlMemory*, Plain<Args>>...);

template <auto kTheirs, typename Ours>
constexpr bool kSame = std::is_same_v<decltype(AsOurs(kTheirs)), Ours>;

static_assert(kSame<&nvmlInit_v2, decltype(NvmlApi::init)>);
static_assert(kSame<&nvmlShutdown, decltype(NvmlApi::shutdown)>);
static_assert(kSame<&nvmlErrorString, decltype(NvmlApi::error_string)>);
static_assert(kSame<&nvmlDeviceGetHandleByPciBusId_v2, decltype(NvmlApi::device)>);
static_assert(kSame<&nvmlDeviceGetUUID, decltype(NvmlApi::uuid)>);
static_assert(kSame<&nvmlDeviceGetPowerUsage, decltype(NvmlApi::power)>);
static_assert(kSame<&nvmlDeviceGetTotalEnergyConsumption, decltype(NvmlApi::energy)>);
static_assert(kSame<&nvmlDeviceGetMemoryInfo, decltype(NvmlApi::memory)>);
static_assert(kSame<&nvmlDeviceGetTemperature, decltype(NvmlApi::temperature)>);
static_assert(kSame<&nvmlDeviceGetClockInfo, decltype(NvmlApi::clock)>);

TEST(NvmlHeader, SizesAndConstantsAreEqual) {
  EXPECT_EQ(sizeof(nvmlReturn_t), sizeof(int));
  EXPECT_EQ(sizeof(nvmlTemperatureSensors_t), sizeof(int));
  EXPECT_EQ(sizeof(nvmlClockType_t), sizeof(int));
  EXPECT_EQ(sizeof(nvmlMemory_t), sizeof(NvmlMemory));
  EXPECT_EQ(offsetof(nvmlMemory_t, total), offsetof(NvmlMemory, total));
  EXPECT_EQ(offsetof(nvmlMemory_t, free), offsetof(NvmlMemory, free));
  EXPECT_EQ(offsetof(nvmlMemory_t, used), offsetof(NvmlMemory, used));
  EXPECT_EQ(static_cast<int>(NVML_SUCCESS), kNvmlSuccess);
  EXPECT_EQ(static_cast<int>(NVML_TEMPERATURE_GPU), kNvmlTemperatureGpu);
  EXPECT_EQ(static_cast<int>(NVML_CLOCK_SM), kNvmlClockSm);
  EXPECT_EQ(static_cast<int>(NVML_CLOCK_MEM), kNvmlClockMemory);
  EXPECT_EQ(NVML_DEVICE_UUID_V2_BUFFER_SIZE, kNvmlUuidBytes);
}

}  // namespace
}  // namespace facet
