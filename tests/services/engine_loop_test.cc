#include "shard_worker/service/engine_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <memory>
#include <optional>
#include <utility>

#include "base/status.h"
#include "kernels/collectives/local.h"
#include "tests/services/fake_rank.h"
#include "tests/services/worker_fixture.h"

namespace facet::testing {
namespace {

class FakeStream : public RouterStream {
 public:
  void Send(v1::LeaderMessage) override {}
  void Taken(int64_t) override {}
  void End(const absl::Status& status) override { end = status; }

  std::optional<absl::Status> end;
};

TEST(EngineLoop, WhoComesWhileTheEpochBreaksIsToldItsEnd) {
  EngineLoopOptions options;
  options.core.engine = SmallEngine();
  options.core.canary.enabled = false;
  FakeRank rank({.engine = options.core.engine});
  rank.Attach(std::move(MakeLocalGroup(1).front()));
  prometheus::Registry registry;
  WorkerMetrics metrics(&registry);
  Pulse pulse;
  EngineLoop loop(options, std::nullopt, &rank, &metrics, &pulse, [](bool) {});
  const auto stream = std::make_shared<FakeStream>();
  loop.Fail({BreakCause::kPeerGone, Unavailable("rank 1 has gone")});
  ASSERT_TRUE(loop.Open(stream).ok());
  EXPECT_EQ(loop.Run().cause, BreakCause::kPeerGone);
  ASSERT_TRUE(stream->end);
  EXPECT_TRUE(absl::IsUnavailable(*stream->end)) << *stream->end;
  EXPECT_THAT(MessageOf(*stream->end), HasSubstr("rank 1 has gone"));
}

}  // namespace
}  // namespace facet::testing
