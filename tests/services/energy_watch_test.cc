#include "shard_worker/service/energy_watch.h"

#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "base/status.h"
#include "tests/base/patience.h"
#include "tests/energy/fake_nvml.h"
#include "tests/energy/fake_powercap.h"

namespace facet {
namespace {

using ::facet::testing::FakeNvml;
using ::facet::testing::FakePowercap;

class EnergyWatchTest : public ::testing::Test {
 protected:
  EnergyWatchOptions Options() {
    EnergyWatchOptions options;
    options.period = std::chrono::milliseconds(1);
    options.host = powercap_.options();
    options.open_nvml = [this]() -> absl::StatusOr<NvmlApi> {
      ++opened_;
      return nvml_.api();
    };
    return options;
  }
  std::string Page() const { return prometheus::TextSerializer().Serialize(registry_->Collect()); }
  // The page once it says `row`.
  std::string PageWith(const std::string& row) const {
    const auto give_up = std::chrono::steady_clock::now() + testing::kLong;
    std::string page = Page();
    while (page.find(row) == page.npos && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
      page = Page();
    }
    EXPECT_NE(page.find(row), page.npos) << page;
    return page;
  }

  FakePowercap powercap_;
  FakeNvml nvml_;
  int opened_ = 0;
  const std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  WorkerMetrics metrics_{registry_.get()};
};

TEST_F(EnergyWatchTest, AGpuIsToldByItsUuid) {
  EnergyWatch watch(Options(), &metrics_);
  watch.Start(FakeNvml::kBusId);
  const std::string labels = "{gpu=\"" + std::string(FakeNvml::kUuid) + "\"} ";
  const std::string page = PageWith("facet_worker_gpu_joules_total" + labels + "0\n");
  for (const char* row :
       {"gpu_watts", "gpu_memory_used_bytes", "gpu_memory_bytes", "gpu_celsius"}) {
    EXPECT_NE(page.find("facet_worker_" + std::string(row) + labels), page.npos) << row;
  }
  EXPECT_NE(page.find("facet_worker_gpu_clock_hertz{clock=\"sm\",gpu="), page.npos) << page;
}

TEST_F(EnergyWatchTest, WhatTheHostTakesIsSummedUp) {
  powercap_.AddZone("intel-rapl:0", "package-0", 0);
  EnergyWatch watch(Options(), &metrics_);
  watch.Start("");
  PageWith("zone=\"package-0\"} 0\n");
  powercap_.Count("intel-rapl:0", 3'000'000);
  PageWith("zone=\"package-0\"} 3\n");
  EXPECT_EQ(opened_, 0) << "NVML is for ranks on GPUs";
}

TEST_F(EnergyWatchTest, WhatCannotBeReadIsNoMetric) {
  EnergyWatchOptions options = Options();
  options.open_nvml = []() -> absl::StatusOr<NvmlApi> {
    return FailedPrecondition("libnvidia-ml.so.1: cannot open shared object file");
  };
  EnergyWatch watch(options, &metrics_);
  watch.Start(FakeNvml::kBusId);
  const std::string page = Page();
  EXPECT_EQ(page.find("joules"), page.npos) << page;
  EXPECT_EQ(page.find("facet_worker_gpu"), page.npos) << page;
}

}  // namespace
}  // namespace facet
