#include "shard_worker/energy/gpu_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "tests/energy/fake_nvml.h"

namespace facet {
namespace {

using ::facet::testing::FakeNvml;
using ::testing::HasSubstr;
using ::testing::Optional;

TEST(GpuMeter, SaysWhatTheGpuSaysInUnitsWithoutPrefix) {
  FakeNvml nvml;
  const auto meter = GpuMeter::Open(nvml.api(), FakeNvml::kBusId);
  ASSERT_TRUE(meter.ok()) << meter.status();
  EXPECT_EQ((*meter)->uuid(), FakeNvml::kUuid);
  const GpuReading reading = (*meter)->Read();
  EXPECT_THAT(reading.watts, Optional(345.6));
  EXPECT_THAT(reading.memory_used_bytes, Optional(50e9));
  EXPECT_THAT(reading.memory_bytes, Optional(80e9));
  EXPECT_THAT(reading.celsius, Optional(61));
  EXPECT_THAT(reading.sm_hertz, Optional(1.98e9));
  EXPECT_THAT(reading.memory_hertz, Optional(2.619e9));
}

TEST(GpuMeter, EnergyIsWhatWasTakenSinceTheReadingBefore) {
  FakeNvml nvml;
  const auto meter = GpuMeter::Open(nvml.api(), FakeNvml::kBusId);
  ASSERT_TRUE(meter.ok()) << meter.status();
  EXPECT_EQ((*meter)->Read().joules, std::nullopt) << "counted before anybody looked";
  nvml.millijoules += 350'500;
  EXPECT_THAT((*meter)->Read().joules, Optional(350.5));
  EXPECT_THAT((*meter)->Read().joules, Optional(0));
}

TEST(GpuMeter, ADriverThatBeginsAnewTakesNothingBack) {
  FakeNvml nvml;
  const auto meter = GpuMeter::Open(nvml.api(), FakeNvml::kBusId);
  ASSERT_TRUE(meter.ok()) << meter.status();
  (*meter)->Read();
  nvml.millijoules = 5'000;
  EXPECT_EQ((*meter)->Read().joules, std::nullopt);
  nvml.millijoules = 7'000;
  EXPECT_THAT((*meter)->Read().joules, Optional(2));
}

TEST(GpuMeter, WhatTheGpuDoesNotSayIsAbsent) {
  FakeNvml nvml;
  nvml.tells_energy = nvml.tells_clocks = false;
  const auto meter = GpuMeter::Open(nvml.api(), FakeNvml::kBusId);
  ASSERT_TRUE(meter.ok()) << meter.status();
  (*meter)->Read();
  nvml.millijoules += 1000;
  const GpuReading reading = (*meter)->Read();
  EXPECT_EQ(reading.joules, std::nullopt);
  EXPECT_EQ(reading.sm_hertz, std::nullopt);
  EXPECT_EQ(reading.memory_hertz, std::nullopt);
  EXPECT_THAT(reading.watts, Optional(345.6));
}

TEST(GpuMeter, ErrorsNameTheCallAndGiveBackTheLibrary) {
  FakeNvml nvml;
  const auto elsewhere = GpuMeter::Open(nvml.api(), "0000:5e:00.0");
  EXPECT_EQ(elsewhere.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(elsewhere.status()), HasSubstr("PciBusId: Not Found"));
  EXPECT_EQ(nvml.initialised, 0);
  nvml.init_result = 9;  // NVML_ERROR_DRIVER_NOT_LOADED
  const auto unloaded = GpuMeter::Open(nvml.api(), FakeNvml::kBusId);
  EXPECT_THAT(MessageOf(unloaded.status()), HasSubstr("nvmlInit: Driver Not Loaded"));
  EXPECT_EQ(nvml.initialised, 0);
}

}  // namespace
}  // namespace facet
