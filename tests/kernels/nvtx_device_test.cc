// The ranges that a tool sees. NVTX is asked to load one; this one lies in the test itself.

#include "kernels/cuda/nvtx_device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nvtx3/nvToolsExt.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/reference/reference_device.h"
#include "tests/kernels/test_data.h"

namespace facet::cuda {
namespace {

using ::testing::ElementsAre;

// What the tool was told: "push product 2", "pop", "start step 2", "end 1".
std::vector<std::string>& Told() {
  static std::vector<std::string> told;
  return told;
}

std::string Described(const char* what, const nvtxEventAttributes_t& attributes) {
  return std::string(what) + " " + attributes.message.ascii + " " +
         std::to_string(attributes.payload.llValue);
}

nvtxDomainHandle_t Create(const char* name) {
  Told().push_back(std::string("domain ") + name);
  static int domain;
  return reinterpret_cast<nvtxDomainHandle_t>(&domain);
}
nvtxRangeId_t Start(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  Told().push_back(Described("start", *attributes));
  return 1;
}
void End(nvtxDomainHandle_t, nvtxRangeId_t id) { Told().push_back("end " + std::to_string(id)); }
int Push(nvtxDomainHandle_t, const nvtxEventAttributes_t* attributes) {
  Told().push_back(Described("push", *attributes));
  return 0;
}
int Pop(nvtxDomainHandle_t) {
  Told().push_back("pop");
  return 0;
}

int ListenToRanges(NvtxGetExportTableFunc_t get_table) {
  const auto* const callbacks =
      static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  *table[NVTX_CBID_CORE2_DomainCreateA] = reinterpret_cast<NvtxFunctionPointer>(&Create);
  *table[NVTX_CBID_CORE2_DomainRangeStartEx] = reinterpret_cast<NvtxFunctionPointer>(&Start);
  *table[NVTX_CBID_CORE2_DomainRangeEnd] = reinterpret_cast<NvtxFunctionPointer>(&End);
  *table[NVTX_CBID_CORE2_DomainRangePushEx] = reinterpret_cast<NvtxFunctionPointer>(&Push);
  *table[NVTX_CBID_CORE2_DomainRangePop] = reinterpret_cast<NvtxFunctionPointer>(&Pop);
  return 1;
}

// NVTX looks for a tool once in a process, so every test has one of its own.
class NvtxDeviceTest : public ::testing::Test {
 protected:
  void SetUp() override { unsetenv("NVTX_INJECTION64_PATH"); }
};

bool LeavesTheDeviceAlone() {
  std::unique_ptr<Device> device = MakeReferenceDevice();
  const Device* const alone = device.get();
  return WithNvtxRanges(std::move(device)).get() == alone;
}

TEST_F(NvtxDeviceTest, WithoutAToolTheDeviceStaysAsItIs) {
  EXPECT_EXIT(std::exit(LeavesTheDeviceAlone() ? 0 : 1), ::testing::ExitedWithCode(0), "");
}

TEST_F(NvtxDeviceTest, AToolSeesStepsAndTheirOperations) {
  InitializeInjectionNvtx2_fnptr = &ListenToRanges;  // where NVTX finds a tool in the program
  const std::unique_ptr<Device> device = WithNvtxRanges(MakeReferenceDevice());
  EXPECT_THAT(Told(), ElementsAre("domain facet"));
  EXPECT_EQ(device->name(), "reference");
  Random random(1);
  const TestMatrix file = MakeMatrix(TensorType::kQ8_0, 8, 64, 0.1f, random);
  const auto matrix = *device->LoadMatrix(file.source(), nullptr);
  const Floats x = Upload(*device, MakeFloats(2 * 64, 1, random));
  const Floats out = *device->AllocateFloats(2 * 8);
  const Matrix* const part = matrix.get();
  const std::vector<SequenceRun> runs = {{.first_row = 0, .rows = 2}};
  const StepLayout layout{2, runs};
  Told().clear();
  device->BeginStep(layout);
  device->Product(std::span(&part, 1), x, 2, out);
  device->EndStep();
  EXPECT_THAT(Told(), ElementsAre("start step 2", "push begin step 2", "pop", "push product 2",
                                  "pop", "end 1"));
  Told().clear();
  device->BeginStep(layout);
  device->BeginStep(layout);  // the step before broke off
  device->EndStep();
  EXPECT_THAT(Told(), ElementsAre("start step 2", "push begin step 2", "pop", "end 1",
                                  "start step 2", "push begin step 2", "pop", "end 1"));
}

}  // namespace
}  // namespace facet::cuda
