#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"
#include "kernels/cuda/nccl_api.h"

namespace facet::cuda {
namespace {

TEST(NcclAbsent, OpeningItSaysWhatTheBuildLacked) {
  const absl::StatusOr<Nccl*> nccl = OpenNccl();
  EXPECT_EQ(nccl.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(nccl.status()), ::testing::HasSubstr("nccl.h"));
}

}  // namespace
}  // namespace facet::cuda
