// A worker takes the device that its flags and its machine allow, says which and why, and serves.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "tests/cluster/cluster.h"

namespace facet::testing {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

constexpr char kModel[] = "tests/golden/tiny/gemma3_8h_quantized.gguf";

std::vector<int32_t> Serve(const std::string& device, std::string* logs) {
  ClusterOptions options;
  options.model = kModel;
  options.worker_flags = {"--device=" + device, "--kv_tokens=512"};
  const auto cluster = Cluster::Start(options);
  EXPECT_TRUE(cluster.ok()) << cluster.status();
  if (!cluster.ok()) return {};
  v1::GenerateRequest request;
  request.add_prompts()->mutable_tokens()->add_ids(5);
  request.set_max_tokens(8);
  request.mutable_sampling()->set_temperature(0);
  request.set_ignore_eos(true);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
  v1::CompleteResponse response;
  const grpc::Status status = (*cluster)->inference().Complete(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<int32_t> ids;
  for (const v1::Choice& choice : response.choices()) {
    for (const v1::TokenOutput& token : choice.tokens()) ids.push_back(token.id());
  }
  *logs = (*cluster)->Logs();
  return ids;
}

bool ModuleIsBuilt() {
  return std::filesystem::exists(std::string(FACET_BIN_DIR) + "/libfacet_cuda.so");
}

TEST(WorkerDevice, AutoSaysWhyItComputesWhereItDoesAndServes) {
  std::string logs, cpu_logs;
  const std::vector<int32_t> ids = Serve("auto", &logs);
  ASSERT_EQ(ids.size(), 8u);
  if (!ModuleIsBuilt()) {
    EXPECT_THAT(logs, HasSubstr("no GPU, as there is no "));
  } else {  // the runtime's reason, unless this machine has a GPU
    EXPECT_THAT(logs,
                AnyOf(HasSubstr("a GPU was found"), HasSubstr("no GPU, as cudaGetDeviceCount"),
                      HasSubstr("no GPU, as the CUDA driver knows no device")));
  }
  const std::vector<int32_t> cpu_ids = Serve("cpu", &cpu_logs);
  EXPECT_THAT(cpu_logs, HasSubstr("--device=cpu"));
  // A GPU adds in another order, and one token may win by less than that changes.
  if (logs.find("a GPU was found") == std::string::npos) EXPECT_EQ(ids, cpu_ids);
}

}  // namespace
}  // namespace facet::testing
