// Which device a name means, and what is said where there is none.

#include "shard_worker/runtime/device_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/status.h"
#include "kernels/cuda/cuda_module.h"
#include "tests/base/temp_folder.h"

namespace facet {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

DeviceChoice Named(const std::string& name, const std::string& module = "/nonexistent/cuda.so") {
  DeviceChoice choice;
  choice.name = name;
  choice.cuda_module = module;
  return choice;
}

TEST(ChooseDevice, AutoIsTheCpuWhereThereIsNoModuleAndSaysSo) {
  const auto chosen = ChooseDevice(Named("auto"));
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_THAT(chosen->device->name(), StartsWith("cpu-"));
  EXPECT_TRUE(chosen->device->arithmetic().empty());
  EXPECT_THAT(chosen->why, HasSubstr("no GPU, as there is no /nonexistent/cuda.so"));
}

TEST(ChooseDevice, AFileThatIsNoModuleIsNamed) {
  const testing::TempFolder folder;
  const std::string path = folder.File("broken.so");
  std::ofstream(path) << "not a library";
  const auto chosen = ChooseDevice(Named("auto", path));
  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_THAT(chosen->device->name(), StartsWith("cpu-"));
  EXPECT_THAT(chosen->why, HasSubstr(path));
}

TEST(ChooseDevice, CudaWithoutAModuleIsAnError) {
  for (const char* name : {"cuda", "cuda:0", "cuda:3"}) {
    const auto chosen = ChooseDevice(Named(name));
    ASSERT_FALSE(chosen.ok()) << name;
    EXPECT_THAT(MessageOf(chosen.status()), HasSubstr("/nonexistent/cuda.so")) << name;
  }
}

// Nobody asks for speed and silently gets a processor, or another arithmetic than that.
TEST(ChooseDevice, FastArithmeticIsRefusedWhereThereIsNone) {
  for (const char* name : {"cpu", "reference"}) {
    DeviceChoice choice = Named(name);
    choice.fast = true;
    const absl::Status refused = ChooseDevice(choice).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(MessageOf(refused), HasSubstr("canonical arithmetic only")) << name;
  }
  DeviceChoice choice = Named("auto");
  choice.fast = true;
  const absl::Status refused = ChooseDevice(choice).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(refused), HasSubstr("--arithmetic=fast needs a GPU"));
  EXPECT_THAT(MessageOf(refused), HasSubstr("there is no /nonexistent/cuda.so"));
}

TEST(ChooseDevice, NamesThatMeanNothingAreRefused) {
  for (const char* name : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    EXPECT_EQ(ChooseDevice(Named(name)).status().code(), absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST(ChooseDevice, OtherNamesMeanWhatTheySay) {
  EXPECT_EQ(ChooseDevice(Named("reference"))->device->name(), "reference");
  const auto cpu = ChooseDevice(Named("cpu"));
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_THAT(cpu->device->name(), StartsWith("cpu-"));
  EXPECT_THAT(cpu->why, HasSubstr("--device=cpu"));
}

// The module that this build made opens and either finds a GPU or says why it has none.
TEST(CudaModule, OpensAndAnswersWithOrWithoutAGpu) {
  const std::string path = std::string(FACET_BIN_DIR) + "/" + cuda::kCudaModuleFile;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "this build has no nvcc: no " << path;
  const auto module = cuda::OpenCudaModule(path);
  ASSERT_TRUE(module.ok()) << module.status();
  const absl::StatusOr<int> count = (*module)->device_count();
  if (count.ok()) {
    EXPECT_GE(*count, 1);
    EXPECT_THAT((*module)->bus_id(0).value(), ::testing::MatchesRegex("[0-9a-f:]+\\.0"));
    EXPECT_EQ((*module)->make_device({.device = *count}).status().code(),
              absl::StatusCode::kFailedPrecondition);
    return;
  }
  EXPECT_EQ(count.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(MessageOf(count.status()).empty());
  EXPECT_EQ((*module)->make_device({}).status(), count.status());
  EXPECT_FALSE((*module)->bus_id(0).ok());
}

// What --arithmetic=fast needs is there, with all that is called of it, or is named.
TEST(CudaModule, OpensCublasLtOrSaysWhatIsMissing) {
  const std::string path = std::string(FACET_BIN_DIR) + "/" + cuda::kCudaModuleFile;
  if (!std::filesystem::exists(path)) GTEST_SKIP() << "this build has no nvcc: no " << path;
  const auto module = cuda::OpenCudaModule(path);
  ASSERT_TRUE(module.ok()) << module.status();
  const absl::StatusOr<int64_t> version = (*module)->cublaslt_version();
  if (version.ok()) {
    EXPECT_GE(*version, 120000);
    return;
  }
  EXPECT_EQ(version.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(version.status()), HasSubstr("cublasLt"));
}

}  // namespace
}  // namespace facet
