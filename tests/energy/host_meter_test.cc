#include "shard_worker/energy/host_meter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/energy/fake_powercap.h"

namespace facet {
namespace {

using ::facet::testing::FakePowercap;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::unique_ptr<HostMeter> Open(const FakePowercap& powercap) {
  auto meter = HostMeter::Open(powercap.options());
  EXPECT_TRUE(meter.ok()) << meter.status();
  return *std::move(meter);
}

// "zone=joules", as the meter names them.
std::vector<std::string> Told(HostMeter& meter) {
  std::vector<std::string> told;
  for (const ZoneEnergy& energy : meter.Read()) {
    told.push_back(fmt::format("{}={}", energy.zone, energy.joules));
  }
  return told;
}

TEST(HostMeter, SaysWhatEachPackageTookSinceTheReadingBefore) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 5'000'000);
  powercap.AddZone("intel-rapl:1", "package-1", 9'000'000);
  const auto meter = Open(powercap);
  EXPECT_THAT(Told(*meter), IsEmpty()) << "counted before anybody looked";
  powercap.Count("intel-rapl:0", 7'500'000);
  EXPECT_THAT(Told(*meter), ElementsAre("package-0=2.5", "package-1=0"));
  powercap.Count("intel-rapl:1", 10'000'000);
  EXPECT_THAT(Told(*meter), ElementsAre("package-0=0", "package-1=1"));
}

TEST(HostMeter, ACounterThatWrapsAroundGoesOn) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", FakePowercap::kRange - 1'000'000);
  const auto meter = Open(powercap);
  meter->Read();
  powercap.Count("intel-rapl:0", 2'000'000);
  EXPECT_THAT(Told(*meter), ElementsAre("package-0=3"));
}

TEST(HostMeter, ACounterThatBeginsAnewAtAnUnknownPlaceTellsNothing) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 8'000'000);
  powercap.Remove("intel-rapl:0", "max_energy_range_uj");
  const auto meter = Open(powercap);
  meter->Read();
  powercap.Count("intel-rapl:0", 1'000'000);
  EXPECT_THAT(Told(*meter), IsEmpty());
  powercap.Count("intel-rapl:0", 3'000'000);
  EXPECT_THAT(Told(*meter), ElementsAre("package-0=2"));
}

TEST(HostMeter, NothingIsCountedTwice) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 0);
  powercap.AddZone("intel-rapl:0:0", "core", 0);          // in the package
  powercap.AddZone("intel-rapl:0:1", "uncore", 0);        // in the package
  powercap.AddZone("intel-rapl:0:2", "dram", 0);          // beside it
  powercap.AddZone("intel-rapl:1", "psys", 0);            // all of them
  powercap.AddZone("intel-rapl-mmio:0", "package-0", 0);  // the package again
  const auto meter = Open(powercap);
  meter->Read();
  EXPECT_THAT(Told(*meter), ElementsAre("package-0=0", "package-0/dram=0"));
}

TEST(HostMeter, OneOfAHostTellsAndAnotherFollowsIt) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 0);
  auto first = Open(powercap);
  const auto second = Open(powercap);
  first->Read();
  powercap.Count("intel-rapl:0", 4'000'000);
  EXPECT_THAT(Told(*second), IsEmpty());
  EXPECT_THAT(Told(*first), ElementsAre("package-0=4"));
  first.reset();
  EXPECT_THAT(Told(*second), IsEmpty()) << "what the first one told";
  powercap.Count("intel-rapl:0", 5'000'000);
  EXPECT_THAT(Told(*second), ElementsAre("package-0=1"));
}

TEST(HostMeter, ACounterThatIsNoNumberIsLeftOut) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 0);
  powercap.AddZone("intel-rapl:1", "package-1", 0);
  const auto meter = Open(powercap);
  meter->Read();
  powercap.Write("intel-rapl:0", "energy_uj", "-3");
  powercap.Count("intel-rapl:1", 1'000'000);
  EXPECT_THAT(Told(*meter), ElementsAre("package-1=1"));
  powercap.Write("intel-rapl:1", "energy_uj", "12 apples");
  EXPECT_THAT(Told(*meter), IsEmpty());
}

TEST(HostMeter, ZonesBeyondTheBoundAreLeftOut) {
  FakePowercap powercap;
  for (int i = 0; i < 3; ++i) {
    powercap.AddZone(fmt::format("intel-rapl:{}", i), fmt::format("package-{}", i), 0);
  }
  HostMeterOptions options = powercap.options();
  options.zones_max = 2;
  const auto meter = HostMeter::Open(options);
  ASSERT_TRUE(meter.ok()) << meter.status();
  (*meter)->Read();
  EXPECT_EQ((*meter)->Read().size(), 2);
}

TEST(HostMeter, AHostWithoutCountersIsNamed) {
  FakePowercap powercap;
  EXPECT_EQ(HostMeter::Open(powercap.options()).status().code(), absl::StatusCode::kNotFound);
  powercap.AddZone("intel-rapl:0", "psys", 0);
  const auto meter = HostMeter::Open(powercap.options());
  EXPECT_EQ(meter.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(MessageOf(meter.status()), HasSubstr(powercap.options().folder));
}

TEST(HostMeter, CountersThatMayNotBeReadAreNoZeros) {
  FakePowercap powercap;
  powercap.AddZone("intel-rapl:0", "package-0", 0);
  powercap.Remove("intel-rapl:0", "energy_uj");  // root may read whatever is there
  EXPECT_EQ(HostMeter::Open(powercap.options()).status().code(),
            absl::StatusCode::kPermissionDenied);
}

}  // namespace
}  // namespace facet
