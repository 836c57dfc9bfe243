#include "shard_worker/energy/nvml.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/status.h"

namespace facet {
namespace {

using ::testing::HasSubstr;

TEST(OpenNvml, ALibraryThatIsNotThereIsNamed) {
  const auto api = OpenNvml("libfacet-has-no-such-library.so.1");
  EXPECT_EQ(api.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(api.status()), HasSubstr("libfacet-has-no-such-library.so.1"));
}

TEST(OpenNvml, AFunctionThatIsNotThereIsNamed) {
  const auto api = OpenNvml("libc.so.6");
  EXPECT_EQ(api.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(MessageOf(api.status()), HasSubstr("nvmlInit_v2"));
}

}  // namespace
}  // namespace facet
